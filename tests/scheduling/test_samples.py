"""Instances that are right on golden queries and wrong on clients' are found by the others."""

from collections.abc import Callable
from itertools import count, pairwise
from random import Random
from typing import Any

import pytest

from parity_models.scheduling.actions import RecycleReason
from parity_models.scheduling.dispatch import RULES, SINGLE_QUEUE, Dispatch
from parity_models.scheduling.health import ALL_GOLDEN, State
from scheduling_world import ORIGINALS, world_of

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
