"""Under overload as much is answered in time as there is capacity for."""

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import pytest

from parity_models import Adaptive, ApproximateBackup, Hedging, NoRedundancy, Policy, Replication
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.actions import Fail, Reason
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.policies import StandIns
from parity_models.scheduling.work import SchedulerConfig
from parity_models.simulation.arrivals import poisson_arrivals
from parity_models.simulation.emulation import Uniform
from parity_models.simulation.simulation import FAILED, Driver, Instance, Simulation
from scheduling_world import ORIGINALS, World, code, world_of

INSTANCES, SERVICE, SECONDS, CALM = 4, 0.01, 5.0, 3.0


class Deaf(Driver):
    """Its instances cannot stop a unit that runs: a cancelled one runs to its end."""

    def _heard(self, instance: Instance) -> float:
        return inf


def goodput(policy: Policy, times: float, deadline: float, *, max_batch: int = 1) -> float:
    """The share of capacity that is answered in time.

    Queries arrive at so many times capacity for SECONDS, and at half of it for CALM seconds more,
    in which no query fails, and after a second, none waits for long.
    """
    further = 0.5
    capacity = INSTANCES * max_batch / (SERVICE * (1 + further * (max_batch - 1)))
    rush, calm = (
        poisson_arrivals(rate, round(rate * seconds), seed=0)
        for rate, seconds in ((times * capacity, SECONDS), (0.5 * capacity, CALM))
    )
    arrivals = np.concatenate([rush, rush[-1] + calm])
    simulation = Simulation(
        arrivals=arrivals,
        instances=INSTANCES,
        extra_instances=0,
        service={DEPLOYED: Uniform(0.7 * SERVICE, 1.3 * SERVICE)},
        further_rows={DEPLOYED: further},
        config=SchedulerConfig(max_batch=max_batch, deadline=deadline),
    )
    result = simulation.run(policy, driver=Deaf)
    after = arrivals > rush[-1] + 1
    assert (result.sources[after] != FAILED).all()
    assert np.percentile(result.latencies[after], 99) < 0.05
    in_time = (result.latencies <= deadline) & (arrivals + result.latencies <= rush[-1])
    return float(in_time.sum() / (rush[-1] * capacity))


@pytest.mark.parametrize("deadline", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("times", [1.2, 2.0, 3.0, 5.0])
def test_overload_leaves_nearly_all_of_capacity_useful(times: float, deadline: float) -> None:
    assert goodput(NoRedundancy(), times, deadline) >= (0.85 if times == 1.2 else 0.9)


@pytest.mark.parametrize("deadline", [0.1, 10.0])
@pytest.mark.parametrize("times", [1.2, 3.0])
def test_redundancy_takes_no_capacity_from_originals(times: float, deadline: float) -> None:
    adaptive = Adaptive(StandIns(code(), True))
    assert goodput(adaptive, times, deadline) >= (0.85 if times == 1.2 else 0.9)


@pytest.mark.parametrize(
    ("policy", "share"),
    [(lambda: Replication(Replication.Options(copies=2)), 0.45), (lambda: Hedging(), 0.8)],
)
def test_copies_are_counted(policy: Callable[[], Policy], share: float) -> None:
    assert goodput(policy(), 3.0, 1.0) >= share


def test_batches_are_counted() -> None:
    assert goodput(NoRedundancy(), 3.0, 1.0, max_batch=8) >= 0.9


def test_slow_models_are_not_refused_for_a_queue_that_is_short_for_them() -> None:
    simulation = Simulation(
        arrivals=poisson_arrivals(0.8 * INSTANCES, 640, seed=0),
        instances=INSTANCES,
        extra_instances=0,
        service={DEPLOYED: Uniform(0.7, 1.3)},
        config=SchedulerConfig(deadline=60.0),
    )
    assert (simulation.run(NoRedundancy()).sources != FAILED).all()


# Queries that cannot be answered in time are refused at once; the others run in order


def test_abandoned_queries_do_not_have_others_refused() -> None:
    world = learned(run=0.2, instances="abc", deadline=10.0)
    for _ in range(300):
        abandoned, *_ = world.arrive(3)
        world.pass_time(0.05)
        world.arrive(2)
        world.pass_time(0.1)
        world.abandon(abandoned)
        world.pass_time(0.05)
        world.finish_all()
    assert not [fail for fail in refusals(world) if fail.reason is Reason.OVERLOADED]


def learned(run: float = 1.0, instances: str = "a", **config: Any) -> World:
    """A world whose instances have run some queries, for so many seconds each."""
    world = world_of(instances, **config)
    for _ in range(10):
        world.arrive(1)
        world.pass_time(run)
        world.finish(min(world.running))
    world.log.clear()
    return world


def refusals(world: World) -> list[Fail]:
    return [action for action in world.log if isinstance(action, Fail)]


def test_without_an_instance_queries_fail_at_once() -> None:
    world = World(Scheduler(NoRedundancy()))
    world.join("cheap", frozenset({BACKUP}))
    world.arrive(1)
    (fail,) = refusals(world)
    assert fail.reason is Reason.NO_INSTANCES
    assert fail.retry_after is not None
    assert 1.0 <= fail.retry_after <= 2.0
    assert world.scheduler.size() == 0


def test_queries_wait_for_an_instance_that_will_soon_be_replaced() -> None:
    world = learned(grace=3.0)
    (lost,) = world.arrive(1)
    world.leave("a")
    (early,) = world.arrive(1)
    world.pass_time(2.9)
    (in_time,) = world.arrive(1)
    assert not refusals(world)
    world.pass_time(0.2)
    (late,) = world.arrive(1)
    assert world.failures[late].reason is Reason.NO_INSTANCES
    world.join("b", ORIGINALS)
    while world.running:
        world.finish_all()
    assert {lost, early, in_time} <= world.answers.keys()


def test_queries_wait_while_all_instances_stand_still() -> None:
    world = learned(run=0.02, instances="ab")
    queries = []
    for _ in range(50):
        queries += world.arrive(1)
        world.pass_time(0.08)
    assert not refusals(world)
    while world.running:
        world.pass_time(0.01)
        world.finish_all()
    assert world.answers.keys() >= {*queries}


def test_an_outage_does_not_have_queries_refused_that_new_instances_answer_in_time() -> None:
    world = learned(run=0.05, instances="ab", deadline=4.0)
    queries = []
    for _ in range(30):
        queries += world.arrive(1)
        world.pass_time(0.1)
    for old, new in ("ac", "bd"):
        world.leave(old)
        world.join(new, ORIGINALS)
    while world.running:
        world.pass_time(0.05)
        world.finish_running()
        queries += world.arrive(len(queries) < 50)
    assert not refusals(world)
    assert world.answers.keys() >= {*queries}


def test_a_query_that_cannot_be_answered_in_time_is_refused_with_the_numbers() -> None:
    world = learned()
    world.arrive(5)
    world.arrive(1, deadline=world.now + 4.0)
    (fail,) = refusals(world)
    assert fail.reason is Reason.OVERLOADED
    assert "due in 4.000 s" in fail.detail
    assert "4 wait for 1 instances, which answer 1.0 a second" in fail.detail
    assert fail.retry_after is not None
    assert fail.retry_after > 2.0
    (later,) = world.arrive(1, deadline=world.now + 9.0)
    assert later not in world.failures


def test_a_request_of_too_many_queries_is_refused_by_an_idle_server_too() -> None:
    world = learned(instances="ab")
    world.arrive(2, deadline=world.now + 0.5)
    assert not refusals(world), "there is an idle instance for each"
    for instance in "ab":
        world.finish(instance)
    world.arrive(10, deadline=world.now + 3.0)
    assert len(refusals(world)) == 10
    assert "10 queries at once are many: an answer takes" in refusals(world)[0].detail
    world.log.clear()
    world.pass_time(11.0)
    world.arrive(10, deadline=world.now + 3.0)
    assert not refusals(world), "estimates are not believed for ever"


def test_queries_that_would_be_late_make_room_for_others() -> None:
    world = learned()
    world.arrive(1)
    (soon,) = world.arrive(1, deadline=world.now + 3.9)
    (later,) = world.arrive(1)
    world.pass_time(3.0)
    assert world.failures[soon].reason is Reason.DEADLINE_EXCEEDED
    world.finish("a")
    assert world.running["a"].subjects == (later,)


def test_queries_that_a_stand_in_may_answer_are_kept() -> None:
    world = world_of("a", ApproximateBackup())
    world.join("cheap", frozenset({BACKUP}))
    for _ in range(10):
        world.arrive(1)
        world.pass_time(1.0)
        world.finish("a")
        world.finish("cheap")
    world.arrive(1)
    world.finish("cheap")
    (soon,) = world.arrive(1, deadline=world.now + 3.9)
    world.arrive(1)
    world.pass_time(3.0)
    assert not world.failures
    world.finish("cheap")
    assert world.answers[soon] is Source.BACKUP
