"""Adaptive where queries wait: a backup runs in place of the model."""

import pytest

from adaptive_world import BACKUPS, CODE, answer_some, runs, world_of
from parity_models.scheduling import BACKUP, DEPLOYED, Source
from scheduling_world import World

WAITED = 0.6
"""Seconds, more than half of a median run time."""


def waiting(world: World) -> World:
    """One query runs, and another waits."""
    world.arrive(2)
    world.pass_time(WAITED)
    return world


def test_a_backup_takes_the_place_of_a_query_that_waits() -> None:
    world = waiting(world_of(1, BACKUPS))
    assert (world.queued(DEPLOYED), world.queued(BACKUP)) == (0, 1)
    world.finish("0")
    assert runs(world) == [BACKUP]
    world.finish("0")
    assert world.answers == {0: Source.MODEL, 1: Source.BACKUP}
    assert not world.running


def test_the_model_runs_it_first_of_all_where_the_answer_is_refused() -> None:
    world = waiting(world_of(1, BACKUPS))
    world.refuses = lambda query, source: True
    world.arrive(1)
    for _ in range(2):
        world.finish("0")
    assert world.running["0"].role == DEPLOYED
    assert world.running["0"].subjects == (1,)
    world.finish("0")
    assert world.answers == {0: Source.MODEL, 1: Source.MODEL}


@pytest.mark.parametrize("reason", ["exact", "closed", "off", "refused", "starts"])
def test_a_query_waits_for_the_model(reason: str) -> None:
    world = world_of(1, BACKUPS)
    if reason == "refused":  # as often as its answers are refused, it does not save work
        world.refuses = lambda query, source: True
        for _ in range(150):
            waiting(world)
            answer_some(world, 0)
    elif reason == "closed":
        world.do(world.scheduler.gate_turned(world.now, Source.BACKUP, False))
    elif reason == "off":
        world.do(world.scheduler.redundancy_switched(world.now, False))
    world.arrive(2, exact=reason == "exact")
    if reason == "starts":
        world.pass_time(0.1)
        world.finish("0")
    world.pass_time(WAITED)
    assert world.queued(BACKUP) == 0


def test_none_is_overtaken_that_waits_since_the_front_door_was_the_bottleneck() -> None:
    world = world_of(1, BACKUPS)
    world.do(world.scheduler.process_measured(world.now, 0.0, 1.0))
    world.arrive(3)
    world.pass_time(WAITED)
    world.do(world.scheduler.process_measured(world.now, 0.0, 0.1))
    world.arrive(2)
    world.pass_time(WAITED)
    for _ in range(5):
        world.finish("0")
    assert list(world.answers) == [0, 1, 2, 3, 4]
    world.arrive(2)
    world.pass_time(WAITED)
    assert world.queued(BACKUP) == 1, "later ones get backups again"


def test_parity_models_take_no_query_s_place() -> None:
    world = waiting(world_of(1, CODE))
    assert world.queued(DEPLOYED) == 1


def test_nothing_is_replaced_before_run_times_are_known() -> None:
    world = waiting(world_of(1, BACKUPS, units=[]))
    assert world.queued(DEPLOYED) == 1
