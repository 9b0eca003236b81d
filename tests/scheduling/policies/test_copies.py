"""Replication, hedging, approximate backups: when they are sent, and how many."""

import pytest

from parity_models.roles import BACKUP, Source
from parity_models.scheduling.policies import ApproximateBackup, Hedging
from scheduling_world import ORIGINALS, world_of


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


@pytest.mark.parametrize("reason", ["exact", "unlike"])
def test_a_backup_answers_when_it_is_first_and_an_exact_query_has_none(reason: str) -> None:
    world = world_of(("a",), ApproximateBackup())
    world.join("cheap", frozenset({BACKUP}))
    world.arrive(1)
    world.finish("cheap")
    assert world.answers == {0: Source.BACKUP}
    world.finish("a")
    world.arrive(1, exact=reason == "exact", unlike=reason == "unlike")
    assert list(world.running) == ["a"]
    world.finish("a")
    assert world.answers[1] is Source.MODEL
