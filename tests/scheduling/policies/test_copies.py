"""Replication, tied requests, hedging, approximate backups: when they are sent, and how many."""

from typing import Any

from parity_models.scheduling import BACKUP, DEPLOYED, Source
from parity_models.scheduling.policies import ApproximateBackup, Hedging, Replication
from parity_models_lab.latency.competitors import Prequal, Tied
from scheduling_world import ORIGINALS, World, world_of


def tied(**options: Any) -> World:
    """Two instances, each with a queue, after nine queries, by which their run times are known."""
    world = world_of("ab", Tied(Tied.Options(**options)), dispatch=Prequal())
    for _ in range(9):
        world.arrive(1)
        world.pass_time(0.5)
        world.finish(*world.running)
    return world


def test_replication_runs_a_query_twice_and_answers_once() -> None:
    world = world_of("ab", Replication(Replication.Options(copies=2)))
    world.arrive(1)
    assert world.running["a"].subjects == world.running["b"].subjects == (0,)
    world.finish("b")
    assert world.answers == {0: Source.MODEL}
    assert world.cancelled == {world.running["a"].unit}


def test_tied_copies_wait_at_two_instances_and_the_first_to_start_cancels_the_other() -> None:
    world = tied()
    world.arrive(3)  # two run, and the third waits at both
    assert sum(world.scheduler.queue_depths().values()) == 2
    world.finish("b")
    assert world.running["b"].subjects == (11,)
    assert world.running["a"].subjects != (11,)
    assert not any(world.scheduler.queue_depths().values())
    world.finish("a")
    assert "a" not in world.running


def test_a_tied_query_is_queued_once_more_only_if_it_waits_after_the_delay() -> None:
    world = tied(tied_delay=1.0)
    world.arrive(3)
    assert sum(world.scheduler.queue_depths().values()) == 1
    world.pass_time(1.1)
    assert sum(world.scheduler.queue_depths().values()) == 2
    assert len(world.running) == 2


def test_hedging_does_not_copy_what_waits_in_the_common_queue() -> None:
    world = world_of(("busy",), Hedging(Hedging.Options(hedge_delay=1.0)))
    world.arrive(2)
    world.abandon(0)
    world.pass_time(1.5)
    world.join("a", ORIGINALS)
    world.join("b", ORIGINALS)
    assert "b" not in world.running
    world.pass_time(1.0)
    assert world.running["b"].subjects == (1,)


def test_hedging_learns_its_delay() -> None:
    world = world_of(("a",), Hedging(Hedging.Options(hedge_quantile=0.95)))
    for _ in range(50):
        world.arrive(1)
        world.pass_time(0.5)
        world.finish("a")
    world.join("b", ORIGINALS)
    world.arrive(1)
    world.pass_time(0.4)
    assert len(world.running) == 1
    world.pass_time(0.2)
    assert len(world.running) == 2


def test_copies_that_the_budget_forbids_are_counted() -> None:
    policy = Hedging(Hedging.Options(hedge_delay=0.1, hedge_budget=0.01))
    world = world_of(map(str, range(30)), policy)
    world.arrive(15)
    world.pass_time(0.2)
    assert len(world.running) == 15 + 10
    assert world.scheduler.work_held_back() == {DEPLOYED: 5}


def test_a_backup_answers_when_it_is_first_and_an_exact_query_has_none() -> None:
    world = world_of(("a",), ApproximateBackup())
    world.join("cheap", frozenset({BACKUP}))
    world.arrive(1)
    world.finish("cheap")
    assert world.answers == {0: Source.BACKUP}
    world.finish("a")
    world.arrive(1, exact=True)
    assert list(world.running) == ["a"]
    world.finish("a")
    assert world.answers[1] is Source.MODEL
