"""A query that cannot be answered in time is refused at once; the others run in order."""

from typing import Any

import pytest

from parity_models.scheduling import BACKUP, Fail, NoRedundancy, Reason, Scheduler, Source
from parity_models.scheduling.policies import ApproximateBackup
from scheduling_world import World, world_of


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


def test_what_can_no_longer_be_in_time_makes_room_for_others() -> None:
    world = learned()
    world.arrive(1)
    (soon,) = world.arrive(1, deadline=world.now + 3.9)
    (later,) = world.arrive(1)
    world.pass_time(3.0)
    assert world.failures[soon].reason is Reason.DEADLINE_EXCEEDED
    world.finish("a")
    assert world.running["a"].subjects == (later,)


def test_what_may_still_be_answered_otherwise_is_kept() -> None:
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


def test_capacity_is_what_instances_really_answer_and_unknown_at_first() -> None:
    world = world_of("ab")
    assert world.scheduler.capacity(world.now) == 0
    for _ in range(10):
        world.arrive(2)
        world.pass_time(0.1)
        for instance in "ab":
            world.finish(instance)
    assert world.scheduler.capacity(world.now) == pytest.approx(20, rel=0.05)
