"""Instances that fail: they get less work, then none, and never half of the pool is out."""

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from parity_models.scheduling.actions import Reason, RecycleReason, Run
from parity_models.scheduling.dispatch import RULES, SINGLE_QUEUE, Dispatch
from parity_models.scheduling.health import State
from scheduling_world import World, world_of

INSTANCES = 6
SERVICE, FAILING_FAST = 0.01, 0.0005


def serve(
    world: World,
    queries: int,
    load: float,
    *,
    bad_query: Callable[[int], bool] = lambda query: False,
) -> list[Run]:
    """Serve so many queries at this share of the load that all instances could carry.

    Units fail on instances whose name begins with "bad", and where a query is bad. Returns the
    runs in the order they began.
    """
    random, runs, started = Random(1), [], set()
    ends: list[tuple[float, int, str, bool]] = []
    arrival = world.now
    last = world.arrived + queries
    while world.arrived < last or world.running:
        for run in world.running.values():
            if run.unit not in started:
                started.add(run.unit)
                runs.append(run)
                failing = run.instance.startswith("bad")
                took = FAILING_FAST if failing else SERVICE
                failing |= any(bad_query(query) for query in run.subjects)
                heapq.heappush(ends, (world.now + took, run.unit, run.instance, failing))
        next_arrival = arrival if world.arrived < last else float("inf")
        if ends and ends[0][0] <= next_arrival:
            at, unit, instance, failing = heapq.heappop(ends)
            world.pass_time(max(0.0, at - world.now))
            if instance in world.running and world.running[instance].unit == unit:
                (world.fail if failing else world.finish)(instance)
        else:
            world.pass_time(max(0.0, arrival - world.now))
            world.arrive(1)
            arrival += random.expovariate(load * INSTANCES / SERVICE)
    return runs


def pool(rule: str, bad: int = 1, **config: Any) -> World:
    names = [f"bad{i}" if i < bad else f"{i}" for i in range(INSTANCES)]
    return world_of(names, dispatch=Dispatch(rule), **config)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("load", [0.05, 0.7])
class Test_an_instance_that_fails_fast:
    def test_gets_its_fair_share_and_then_none(self, rule: str, load: float) -> None:
        world = pool(rule)
        runs = serve(world, 1000, load)
        tries = Counter(run.instance for run in runs)
        assert tries["bad0"] / len(runs) < 0.02
        assert not world.failures
        assert world.recycled["bad0"].reason is RecycleReason.FAILING
        assert dict(world.scheduler.instances())["bad0"] is State.EJECTED

    def test_is_out_twice_as_long_each_time(self, rule: str, load: float) -> None:
        world = pool(rule)
        serve(world, 100, load)
        world.pass_time(1.0)
        before = len(serve(world, 1000, load))
        runs = serve(world, 2000, load)
        tries = Counter(run.instance for run in runs)
        assert before >= 1000
        assert tries["bad0"] <= 6


@pytest.mark.parametrize("rule", RULES)
def test_at_most_half_of_the_instances_are_out_for_failing(rule: str) -> None:
    world = pool(rule, bad=4)
    serve(world, 1500, 0.2)
    out = [state for _, state in world.scheduler.instances() if state is State.EJECTED]
    assert len(out) <= INSTANCES // 2


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("one_in", [2, 10])
@pytest.mark.parametrize("load", [0.05, 0.5])
def test_a_clients_bad_inputs_eject_nobody(rule: str, one_in: int, load: float) -> None:
    world = pool(rule, bad=0)
    serve(world, 1500, load / (1 + 4 / one_in), bad_query=lambda query: query % one_in == 0)
    assert not world.recycled
    assert {fail.reason for fail in world.failures.values()} == {Reason.INSTANCES_FAILED}
    assert len(world.failures) == 1500 // one_in


@pytest.mark.parametrize("rule", RULES)
def test_instances_are_found_failing_beside_failing_inputs(rule: str) -> None:
    world = pool(rule)
    serve(world, 1000, 0.3, bad_query=lambda query: query % 10 == 0)
    assert set(world.recycled) == {"bad0"}


def test_cancelled_units_are_held_against_nobody() -> None:
    world = pool(SINGLE_QUEUE, bad=0)
    for _ in range(50):
        world.arrive(6, deadline=world.now + 0.1)
        world.pass_time(0.2)
        for instance in list(world.running):
            world.fail(instance)
    assert not world.recycled
    assert {state for _, state in world.scheduler.instances()} == {State.UP}
