"""The cascade: who is asked first, and what happens where a stand-in cannot answer."""

from typing import Any

import pytest

from parity_models.errors import UserError
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Cascade, StandIns
from scheduling_world import ORIGINALS, World, code, world_of


def cascade(*, instances: int = 2, compare_every: float = 0.0, **options: Any) -> World:
    """Instances that all run the model and the backup."""
    policy = Cascade(Cascade.Options(**options))
    return world_of(map(str, range(instances)), policy, compare_every=compare_every)


def runs(world: World) -> list[str]:
    """The roles that run, in order."""
    return sorted(run.role for run in world.running.values())


def test_the_model_answers_where_the_gate_refuses() -> None:
    world = cascade()
    world.refuses = lambda query, source: True
    world.arrive(1)
    world.finish("0")
    assert runs(world) == [DEPLOYED]
    world.finish("1")
    assert world.answers == {0: Source.MODEL}


@pytest.mark.parametrize("reason", ["exact", "closed", "down"])
def test_the_model_is_asked_at_once_where_no_stand_in_can_be(reason: str) -> None:
    world = cascade()
    if reason == "closed":
        world.do(world.scheduler.gate_turned(world.now, Source.BACKUP, False))
    elif reason == "down":
        for instance in "01":
            world.leave(instance)
        world.join("2", ORIGINALS)
    world.arrive(1, exact=reason == "exact")
    assert runs(world) == [DEPLOYED]


@pytest.mark.parametrize("event", ["fails", "leaves", "is busy"])
def test_the_model_is_asked_where_the_stand_in_s_unit_is_lost(event: str) -> None:
    world = cascade()
    world.arrive(1)
    if event == "fails":
        world.fail("0")
    elif event == "leaves":
        world.leave("0")
    else:
        world.fail("0", 1.0)
    assert runs(world) == [DEPLOYED]
    world.finish(next(iter(world.running)))
    assert world.answers == {0: Source.MODEL}


def test_the_model_is_asked_as_well_where_the_stand_in_is_late_within_the_budget() -> None:
    world = cascade(instances=30, hedge_delay=1.0, hedge_budget=0.01)
    world.arrive(12)
    world.pass_time(1.5)
    assert runs(world).count(DEPLOYED) == 10
    world.finish("0")
    assert world.answers == {0: Source.BACKUP}
    assert len(world.cancelled) == 1


def test_a_query_waits_for_a_stand_in_that_is_queued_and_for_none_that_is_gone() -> None:
    world = cascade(hedge_delay=1.0)
    world.arrive(3)
    world.pass_time(1.5)  # the late two have the model asked, and the third waits
    assert (world.queued(BACKUP), world.queued(DEPLOYED)) == (1, 2)
    world.join("2", ORIGINALS)
    for instance in "01":
        world.leave(instance)
    world.pass_time(1.5)
    for _ in range(3):
        world.finish("2")
    assert world.answers == dict.fromkeys(range(3), Source.MODEL)


@pytest.mark.parametrize(
    ("queries", "every", "compared"),
    [(41, 1.0, 4), (211, 0.01, 10)],
    ids=["every 10 s", "one answer in 20"],
)
def test_the_model_is_asked_first_now_and_then(queries: int, every: float, compared: int) -> None:
    world = cascade(compare_every=10.0)
    for _ in range(queries):
        world.arrive(1)
        world.finish_all()
        world.pass_time(every)
    sources = list(world.answers.values())
    assert sources.count(Source.MODEL) == compared + 1
    assert len(world.compared) == compared


def test_a_queue_of_stand_ins_counts_as_waiting_and_one_that_runs_does_not() -> None:
    world = cascade()
    world.arrive(5)
    assert world.scheduler.waiting == 3


def test_parity_models_cannot_be_asked_first() -> None:
    with pytest.raises(UserError, match="cascade needs a backup, and there is none"):
        PolicyChoice("cascade").build(StandIns(code()))
    policy, _ = PolicyChoice("cascade").build(StandIns(code(), True))
    assert policy.roles(1, 0) == [frozenset({DEPLOYED, BACKUP})]
