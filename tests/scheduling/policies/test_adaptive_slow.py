"""The adaptive policy asks at once for queries on instances that are known to be slow."""

import pytest

from adaptive_world import (
    BACKUPS,
    BOTH,
    CODE,
    PARITY,
    SOME_SLOW,
    answer_some,
    port_at,
    run_times,
    runs,
)
from parity_models.scheduling import BACKUP, DEPLOYED, Source
from parity_models.scheduling.policies import Adaptive, StandIns
from parity_models.scheduling.work import Task, Unit
from scheduling_world import World, code, world_of


def ran(world: World, policy: Adaptive, seconds: float, *instances: str) -> None:
    """The policy hears that each of these has run a unit of the model for so long."""
    port = port_at(world.now, policy, world.roles)
    for instance in instances:
        tasks, began = [Task(DEPLOYED, -1, "image")], world.now - seconds
        unit = Unit(-1, instance, DEPLOYED, tasks, began, took=seconds)
        policy.unit_ended(port, unit, finished=True)


def slow_world(stand_ins: StandIns = BACKUPS) -> tuple[World, Adaptive]:
    """Instances a to h; a to d, which take first, have been late."""
    policy = Adaptive(stand_ins, run_times=run_times(*SOME_SLOW))
    world = world_of("abcdefgh", policy, code=code())
    world.pass_time(10.0)
    ran(world, policy, 9.0, *"abcd")
    return world, policy


def test_a_query_on_a_slow_instance_is_asked_for_as_it_begins_and_answered_once_it_is_late() -> (
    None
):
    world, _ = slow_world()
    world.arrive(1)
    world.pass_time(0.01)
    original, backup = world.running
    assert runs(world) == [DEPLOYED, BACKUP]
    world.pass_time(0.5)
    world.finish(backup)
    assert not world.answers, "the model may be in time"
    world.pass_time(0.6)
    assert world.answers == {0: Source.BACKUP}
    assert world.cancelled == {world.running[original].unit}


def test_a_model_that_is_in_time_answers_before_the_backup_that_is_kept() -> None:
    world, _ = slow_world()
    world.arrive(1)
    world.pass_time(0.01)
    original, backup = world.running
    world.finish(backup)
    world.pass_time(0.9)
    world.finish(original)
    assert world.answers == {0: Source.MODEL}
    world.pass_time(9.0)
    assert not world.running


def test_what_a_backup_says_is_kept_no_longer_than_the_original_s_instance_lives() -> None:
    world, _ = slow_world()
    world.arrive(1)
    world.pass_time(0.01)
    original, backup = world.running
    world.finish(backup)
    world.leave(original)
    assert world.answers == {0: Source.BACKUP}


def test_what_a_backup_says_is_the_answer_at_the_deadline() -> None:
    world, _ = slow_world()
    world.arrive(1, deadline=world.now + 0.6)
    world.pass_time(0.01)
    world.finish(list(world.running)[1])
    world.pass_time(0.6)
    assert world.answers == {0: Source.BACKUP}


@pytest.mark.parametrize(("stand_ins", "sent"), [(BACKUPS, BACKUP), (CODE, PARITY)])
def test_what_is_sent_waits_for_an_instance_that_is_not_slow(
    stand_ins: StandIns, sent: str
) -> None:
    policy = Adaptive(stand_ins, run_times=run_times(*SOME_SLOW))
    world = world_of(("fast", "busy"), policy, code=code())
    answer_some(world)
    world.arrive(2, exact=True)
    for instance in "ab":
        world.join(instance, policy.roles(1, 0)[0])
    ran(world, policy, 9.0, *"ab")
    world.arrive(1)
    world.pass_time(0.01)
    assert runs(world) == [DEPLOYED] * 3
    assert world.queued(sent) == 1
    world.finish("fast")
    assert world.running["fast"].role == sent


def test_a_query_that_is_refused_early_is_copied_before_it_is_late() -> None:
    world, _ = slow_world()
    world.refuses = lambda query, source: True
    world.arrive(1)
    world.pass_time(0.01)
    world.finish(list(world.running)[1])
    world.pass_time(0.001)
    assert runs(world) == [DEPLOYED] * 2
    assert not world.answers


def test_an_instance_is_slow_until_it_is_in_time_again() -> None:
    world, policy = slow_world()
    ran(world, policy, 1.0, *"abcd")
    world.arrive(1)
    world.pass_time(0.9)
    assert runs(world) == [DEPLOYED]
    ran(world, policy, 9.0, *(f"gone {n}" for n in range(100)))
    world.arrive(1)
    world.pass_time(0.01)
    assert runs(world) == [DEPLOYED] * 2, "what is gone says nothing of others"


def test_two_thirds_of_all_are_slow_at_most_the_newest() -> None:
    world, policy = slow_world()
    ran(world, policy, 9.0, *"ef")
    for early in (False, True, True, True, True, True):  # a to f
        before = runs(world)
        world.arrive(1)
        world.pass_time(0.001)
        asked = [BACKUP] if early else []
        assert sorted(runs(world)) == sorted([*before, DEPLOYED, *asked])
        for instance in list(world.running):
            if world.running[instance].role != DEPLOYED:
                world.finish(instance)


def test_a_refusal_is_held_against_the_stand_in_that_was_refused() -> None:
    world, _ = slow_world(BOTH)
    answer_some(world, 40)
    world.refuses = lambda query, source: True
    asked: list[str] = []
    for _ in range(120):
        world.arrive(1)
        world.pass_time(1.2)
        asked += [run.role for run in world.running.values() if run.role != DEPLOYED]
        for instance in list(world.running):
            if instance in world.running:
                world.finish(instance)
    assert asked.count(BACKUP) > 5
    assert asked.count(PARITY) > 5, "the backup's refusals are not held against it"
