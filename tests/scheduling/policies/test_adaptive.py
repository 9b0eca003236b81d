"""The adaptive policy drives a race for each query: see test_race.py for the rule itself."""

from typing import Any

import pytest

from adaptive_world import BACKUPS, BOTH, CODE, PARITY, runs, world_of
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.actions import Encode
from parity_models.scheduling.race import KNOWN, MAX_TASKS
from parity_models.scheduling.work import SchedulerConfig
from scheduling_world import ORIGINALS, World

SURE, UNSURE = [0.0] * KNOWN, [1.0] * KNOWN
"""Doubts of outputs that have been seen."""


def running(world: World, role: str) -> str:
    """Return the only instance that runs this role."""
    (instance,) = [each for each, run in world.running.items() if run.role == role]
    return instance


def test_nothing_is_sent_while_nothing_is_late() -> None:
    world = world_of(stand_ins=BOTH)
    world.arrive(4)
    world.pass_time(0.99)
    assert runs(world) == [DEPLOYED] * 4
    assert not any(isinstance(action, Encode) for action in world.log)


def test_before_run_times_are_known_help_comes_within_the_deadline() -> None:
    world = world_of(stand_ins=BOTH, units=[])
    world.arrive(1)
    world.pass_time(SchedulerConfig().deadline * 0.51)
    assert sorted(runs(world)) == [BACKUP, DEPLOYED, DEPLOYED]
    world.pass_time(SchedulerConfig().deadline * 0.48)
    assert len(runs(world)) == MAX_TASKS


def test_the_backup_is_asked_for_a_late_query_and_answers_it() -> None:
    world = world_of(stand_ins=BACKUPS)
    world.arrive(2)
    world.finish("0")
    world.pass_time(1.1)
    world.finish(running(world, BACKUP))
    assert world.answers == {0: Source.MODEL, 1: Source.BACKUP}
    assert world.cancelled == {run.unit for run in world.running.values()}


def test_two_that_are_late_share_a_parity_query() -> None:
    world = world_of(stand_ins=CODE, doubts=())
    world.arrive(2)
    world.pass_time(1.1)
    assert runs(world) == [DEPLOYED, DEPLOYED, PARITY]
    world.finish("2")
    assert world.answers == dict.fromkeys((0, 1), Source.RECONSTRUCTION)


def test_a_query_that_is_tried_again_joins_no_second_group() -> None:
    world = world_of(stand_ins=CODE, doubts=())
    world.arrive(2)
    world.pass_time(1.1)
    world.fail("2")
    world.fail("0")
    world.arrive(1)
    world.pass_time(3.0)
    world.finish_all()
    assert not world.members


@pytest.mark.parametrize("reason", ["refused", "doubtful"])
def test_a_query_whose_reconstruction_may_not_answer_is_copied_at_once(reason: str) -> None:
    """It is encoded with an answered one, as parity models are quick."""
    world = world_of(stand_ins=CODE, doubts=())
    world.arrive(4)
    world.finish_all()
    world.arrive(1)
    world.pass_time(1.1)
    assert runs(world) == [DEPLOYED, PARITY]
    (encode,) = [action for action in world.log if isinstance(action, Encode)]
    assert encode.members[0] == 4
    assert encode.members[1] in range(4)
    if reason == "refused":
        world.refuses = lambda query, source: True
    else:
        world.doubt = lambda query, source: 0.9
    world.finish(running(world, PARITY))
    world.pass_time(0.001)
    assert runs(world) == [DEPLOYED] * 2
    assert 4 not in world.answers


@pytest.mark.parametrize("reason", ["exact", "unlike"])
def test_a_late_query_that_no_stand_in_may_see_is_copied(reason: str) -> None:
    world = world_of(stand_ins=BOTH)
    world.arrive(2, exact=reason == "exact", unlike=reason == "unlike")
    world.pass_time(1.1)
    assert runs(world) == [DEPLOYED] * 4


def test_redundant_tasks_of_late_queries_go_before_waiting_queries() -> None:
    world = world_of(2, stand_ins=BACKUPS, differ=0.0)
    late, other = world.arrive(2)
    world.pass_time(1.1)
    world.arrive(1)
    (instance,) = (each for each, run in world.running.items() if run.subjects == (other,))
    world.finish(instance)
    assert world.running[instance].subjects == (late,)


def test_a_unit_that_hangs_is_late_though_none_ever_was() -> None:
    world = world_of(stand_ins=CODE, units=[(1.0, True)] * 100)
    world.arrive(1, exact=True)
    world.pass_time(1.1)
    assert runs(world) == [DEPLOYED] * 2


def test_on_a_slow_instance_the_backup_is_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of(3, BACKUPS)
    monkeypatch.setattr(world.scheduler, "pace", lambda one: 9.0 if one == "0" else 1.0)
    world.arrive(2)
    world.pass_time(0.1)
    assert runs(world) == [DEPLOYED, DEPLOYED, BACKUP]
    assert world.running["2"].subjects == world.running["0"].subjects


# RequestedLevel first


def asked_first(doubt: float = 0.0, **options: Any) -> World:
    """A query has asked the backup, whose output will have this doubt, and the model waits."""
    world = world_of(2, BACKUPS, doubts=SURE, **options)
    world.doubt = lambda query, source: doubt
    world.arrive(1)
    assert runs(world) == [BACKUP]
    return world


@pytest.mark.parametrize("event", ["doubtful", "refused", "fails", "leaves", "is busy", "late"])
def test_model_answers_if_the_backup_does_not(event: str) -> None:
    world = asked_first(0.9)
    world.refuses = lambda query, source: event == "refused"
    if event in ("doubtful", "refused"):
        world.finish("0")
    elif event == "leaves":
        world.leave("0")
    elif event == "late":
        world.pass_time(0.5)
    else:
        world.fail("0", float(event == "is busy"))
    world.finish(running(world, DEPLOYED))
    assert world.answers == {0: Source.MODEL}


@pytest.mark.parametrize(
    "reason", ["exact", "unlike", "closed", "down", "off", "unsure", "budget", "code"]
)
def test_the_model_is_asked_at_once_where_no_stand_in_may_be(reason: str) -> None:
    world = world_of(
        2,
        CODE if reason == "code" else BACKUPS,
        doubts=UNSURE if reason == "unsure" else SURE,
        differ=0.001 * (reason != "budget"),
    )
    if reason == "closed":
        world.do(world.scheduler.gate_turned(world.now, Source.BACKUP, False))
    elif reason == "off":
        world.do(world.scheduler.redundancy_switched(world.now, False))
    elif reason == "down":
        world.join("2", ORIGINALS)
        for instance in "01":
            world.leave(instance)
    world.arrive(1, exact=reason == "exact", unlike=reason == "unlike")
    assert runs(world) == [DEPLOYED]


def test_backup_takes_the_place_of_the_model_while_queries_wait() -> None:
    world = world_of(1, BACKUPS, doubts=SURE)
    world.arrive(1, exact=True)
    world.arrive(1)
    world.finish("0")
    assert runs(world) == [BACKUP]
    world.finish("0")
    assert world.answers == {0: Source.MODEL, 1: Source.BACKUP}
    assert not world.running


# Held


@pytest.mark.parametrize(
    ("event", "source"),
    [("in time", "model"), ("leaves", "backup"), ("deadline", "backup"), ("late", "backup")],
)
def test_a_held_output_answers_once_it_is_needed(event: str, source: str) -> None:
    world = asked_first(0.5, differ=0.001, copies=0.0)
    world.finish("0")
    model = running(world, DEPLOYED)
    world.pass_time(0.9)
    assert not world.answers, "the model may be in time"
    if event == "in time":
        world.finish(model)
    elif event == "leaves":
        world.leave(model)
    else:
        world.pass_time(9.0)
    assert world.answers == {0: Source(source)}
