"""The approximate backup: when it answers, and whom."""

from parity_models.scheduling import BACKUP, Scheduler, Source
from parity_models.scheduling.policies import ApproximateBackup
from scheduling_world import ORIGINALS, World


def test_a_backup_answers_when_it_is_first() -> None:
    world = World(Scheduler(ApproximateBackup()))
    world.join("a", ORIGINALS)
    world.join("cheap", frozenset({BACKUP}))
    world.arrive(1)
    world.finish("cheap")
    assert world.answers == {0: Source.BACKUP}


def test_an_exact_query_has_no_backup() -> None:
    world = World(Scheduler(ApproximateBackup()))
    world.join("a", ORIGINALS)
    world.join("cheap", frozenset({BACKUP}))
    world.arrive(1, exact=True)
    assert list(world.running) == ["a"]
    world.finish("a")
    assert world.answers == {0: Source.MODEL}


def test_a_backup_waits_for_the_stand_in_delay() -> None:
    policy = ApproximateBackup(ApproximateBackup.Options(stand_in_delay=1.0))
    world = World(Scheduler(policy))
    world.join("a", ORIGINALS)
    world.join("cheap", frozenset({BACKUP}))
    world.arrive(1)
    world.finish("cheap")
    assert not world.answers
    world.pass_time(1.1)
    assert world.answers == {0: Source.BACKUP}
