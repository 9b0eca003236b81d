"""Instances that answer wrongly are found by golden queries, at once where they are suspected, and
by the others if they are right on golden queries and wrong on clients'."""

from collections.abc import Callable
from itertools import count, pairwise
from random import Random
from typing import Any

import pytest

from parity_models.roles import DEPLOYED, parity_role
from parity_models.scheduling.actions import Reason, RecycleReason
from parity_models.scheduling.dispatch import RULES, SINGLE_QUEUE, Dispatch
from parity_models.scheduling.health import ALL_GOLDEN, State
from parity_models.scheduling.policies import Parity
from scheduling_world import BOTH, ORIGINALS, World, code, world_of


def pool(
    instances: int,
    verify_every: int = 3,
    rule: str = SINGLE_QUEUE,
    batch: int = 1,
    *,
    verified: bool = True,
) -> World:
    """Instances that answer golden queries, and have answered the first ones if `verified`."""
    names = map(str, range(instances))
    world = world_of(names, dispatch=Dispatch(rule), max_batch=batch, verify_every=verify_every)
    if verified:
        verify_all(world)
    return world


def verify_all(world: World) -> None:
    while world.verifying:
        world.verify(next(iter(world.verifying)))


def states(world: World) -> dict[str, State]:
    return dict(world.scheduler.instances())


class Test_an_instance_that_joins:
    def test_answers_a_golden_query_of_each_work_before_it_gets_any(self) -> None:
        world = world_of({"a": BOTH}, Parity(code()), code=code(), verify_every=100)
        (too_soon,) = world.arrive(1)
        assert world.failures[too_soon].reason is Reason.NO_INSTANCES
        assert states(world) == {"a": State.VERIFYING}
        assert world.scheduler.up(DEPLOYED) == 0
        assert world.verifying["a"].role == DEPLOYED
        world.verify("a")
        assert world.verifying["a"].role == parity_role(0)
        assert not world.running
        world.verify("a")
        (query,) = world.arrive(1)
        assert world.running["a"].subjects == (query,)
        assert states(world) == {"a": State.UP}

    def test_gets_none_if_it_answers_wrongly(self) -> None:
        world = pool(1, verified=False)
        world.verify("0", right=False)
        assert world.recycled["0"].reason is RecycleReason.QUARANTINED
        assert world.recycled["0"].why == "answered a golden query of the role deployed wrongly"
        (query,) = world.arrive(1)
        assert world.failures[query].reason is Reason.NO_INSTANCES
        world.pass_time(5.0)
        assert not world.running | world.verifying
        world.leave("0")
        world.join("1", ORIGINALS)
        verify_all(world)
        world.arrive(1)
        assert "1" in world.running

    def test_is_tried_again_after_a_while_if_it_does_not_answer(self) -> None:
        world = pool(1, verified=False)
        for _ in range(3):
            world.fail("0")
            assert "0" not in world.verifying
            world.pass_time(5.0)
        assert world.recycled["0"].reason is RecycleReason.FAILING
        world.verify("0")
        world.arrive(1)
        assert "0" in world.running

    def test_is_replaced_if_its_golden_query_is_lost(self) -> None:
        world = pool(1, verified=False)
        world.pass_time(15.0)
        assert world.recycled["0"].reason is RecycleReason.HUNG


@pytest.mark.parametrize("rule", RULES)
def test_an_instance_at_work_is_back_if_its_golden_query_fails(rule: str) -> None:
    world = pool(1, verify_every=1, rule=rule)
    world.arrive(2)
    world.finish("0")
    world.fail("0")
    assert "0" in world.running
    world.finish("0")
    assert "0" in world.verifying


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("batch", [1, 6, 64])
def test_verify_every_bounds_how_many_queries_a_liar_answers(batch: int, rule: str) -> None:
    world = pool(6, verify_every=100, batch=batch, rule=rule)
    lies = 0
    while "0" not in world.recycled:
        world.arrive(6 * batch)
        for instance in list(world.running):
            lies += len(world.running[instance].subjects) if instance == "0" else 0
            world.finish(instance)
        for instance in list(world.verifying):
            world.verify(instance, right=instance != "0")
        assert lies < 100 + batch


def test_those_on_the_node_of_a_liar_are_verified_next() -> None:
    world = world_of((), verify_every=3)
    for instance, node in (("0", "a"), ("1", "a"), ("2", "a"), ("3", "b"), ("4", None)):
        world.join(instance, ORIGINALS, node)
        if instance != "0":
            world.verify(instance)
    world.arrive(1)
    (busy,) = world.running
    world.verify("0", right=False)
    beside = {"1", "2"}
    assert world.verifying.keys() == beside - {busy}
    world.finish(busy)
    assert world.verifying.keys() == beside
    verify_all(world)
    assert {state for name, state in world.scheduler.instances() if name != "0"} == {State.UP}


# Queries of clients that are asked again


Output = Callable[[str, int], int]
"""The output of an instance for a query: 0 is right."""


class Fleet:
    """Instances that are right on every golden query, and answer clients with `output`.

    One that is recycled is back at once, in the same place: "2.1" comes after "2".
    """

    def __init__(
        self, instances: int, output: Output, rule: str = SINGLE_QUEUE, **config: Any
    ) -> None:
        config = {"verify_every": 100, "sample_every": 100, **config}
        names = map(str, range(instances))
        self.world = world_of(names, dispatch=Dispatch(rule), **config)
        self.output = output
        self.given: dict[int, str] = {}
        """The instance that answered each query."""
        self.outputs: dict[int, list[int]] = {}
        self.lives = count(1)
        self.replaced: list[tuple[str, float]] = []
        self.go_on()

    def serve(
        self, queries: int, at_once: int = 2, until: Callable[[], bool] | None = None
    ) -> None:
        """Serve so many queries, or fewer, that arrive so many at once every 10 ms."""
        for _ in range(queries // at_once):
            self.world.arrive(at_once)
            self.world.pass_time(0.01)
            self.go_on()
            if until is not None and until():
                break

    def go_on(self) -> None:
        """Let all instances end what they have, golden queries in many rounds."""
        world = self.world
        for instance, run in list(world.running.items()):
            for query in run.subjects:
                self.given[query] = instance
                self.outputs[query] = [self.output(instance, query)]
            world.finish(instance)
        while world.verifying:
            for instance, verify in list(world.verifying.items()):
                answer = 0
                if verify.query is not None:
                    known, found = self.outputs[verify.query], self.output(instance, verify.query)
                    if found not in known:
                        known.append(found)
                    answer = known.index(found)
                world.verify(instance, answer=answer)
        for instance, action in list(world.recycled.items()):
            assert action.reason is RecycleReason.QUARANTINED
            self.replaced.append((instance, world.now))
            world.leave(instance)
            world.join(f"{instance.split('.')[0]}.{next(self.lives)}", ORIGINALS)
        world.log.clear()

    @property
    def wrong(self) -> list[str]:
        """The instance that gave each of the wrong answers."""
        return [by for query, by in self.given.items() if self.outputs[query][0] != 0]


def lies_in(place: str, share: float = 1.0) -> Output:
    """The instances in this place are wrong on a share of all queries."""

    def output(instance: str, query: int) -> int:
        wrong = Random(query).random() < share
        return int(instance.split(".")[0] == place and wrong)

    return output


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("instances", "batch"), [(3, 1), (4, 1), (4, 8), (30, 1)])
def test_a_liar_gives_few_wrong_answers(rule: str, instances: int, batch: int) -> None:
    fleet = Fleet(instances, lies_in("1"), rule, max_batch=batch)
    fleet.serve(4200, at_once=max(2, batch // 2))
    assert {name.split(".")[0] for name, _ in fleet.replaced} == {"1"}
    assert len(fleet.wrong) <= 0.005 * 4200 + batch
    assert set(fleet.wrong) <= {"1"}, "none that came in its place has answered anybody"


def test_each_replacement_that_lies_waits_longer_and_answers_every_golden_query() -> None:
    fleet = Fleet(4, lies_in("2"))
    fleet.serve(8000)
    times = [at for _, at in fleet.replaced]
    assert len(times) >= 4
    waits = [after - before for before, after in pairwise(times)]
    assert waits == sorted(waits)
    assert waits[-1] >= 8.0


def test_one_that_does_not_lie_comes_in_after_all_golden_queries() -> None:
    fleet = Fleet(4, lambda instance, query: int(instance == "2"))
    fleet.serve(1000, until=lambda: bool(fleet.replaced))
    asked = 0
    world = fleet.world
    (new,) = (name for name in world.roles if "." in name)
    while new in world.verifying:
        asked += 1
        world.verify(new)
    assert asked > ALL_GOLDEN
    assert dict(world.scheduler.instances())[new] is State.UP


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_one_that_begins_to_lie_later_is_found_within_500_of_its_answers(share: float) -> None:
    lies = lies_in("0", share)
    fleet = Fleet(4, lambda instance, query: query > 4000 and lies(instance, query))
    fleet.serve(20_000, until=lambda: bool(fleet.replaced))
    ((name, _),) = fleet.replaced
    assert name == "0"
    assert sum(by == "0" for query, by in fleet.given.items() if query > 4000) <= 500


by_chance = Random(3)


@pytest.mark.parametrize("instances", [2, 3, 5])
@pytest.mark.parametrize(
    "output",
    [
        lambda instance, query: by_chance.randrange(2),
        lambda instance, query: by_chance.randrange(3),
        lambda instance, query: int(by_chance.random() < 0.01),
        lambda instance, query: by_chance.randrange(1000),
        lambda instance, query: by_chance.randrange(2) if query // 500 % 2 else 0,
    ],
    ids=["one of two", "one of three", "rarely another", "never the same", "now and then"],
)
def test_outputs_that_differ_by_chance_evict_nobody(instances: int, output: Output) -> None:
    fleet = Fleet(instances, output)
    fleet.serve(5000)
    assert not fleet.replaced


def test_outputs_that_depend_on_the_batch_evict_nobody() -> None:
    """As those of networks that are quantised as they run."""
    fleet = Fleet(4, lambda instance, query: 0, max_batch=4)
    world = fleet.world
    single = fleet.output
    fleet.output = lambda instance, query: (
        7 if instance in world.running else single(instance, query)
    )
    fleet.serve(5000, at_once=8)
    assert not fleet.replaced
