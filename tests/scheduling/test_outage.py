"""While no upstream answers, stand-ins do, and what they may not answer fails at once."""

import pytest

from adaptive_world import BACKUPS, run_times
from parity_models.roles import BACKUP, Source
from parity_models.scheduling.actions import Reason
from parity_models.scheduling.core import STUCK, Scheduler
from parity_models.scheduling.policies import Adaptive
from parity_models.scheduling.work import SchedulerConfig
from scheduling_world import ORIGINALS, World

RUN = 0.01


def fleet(upstreams: str = "ab", roles: frozenset[str] = ORIGINALS, grace: float = 0.0) -> World:
    """A server in front of upstreams, with a stand-in of its own, that knows their usual times."""
    runs = run_times(*[(RUN, True)] * 100)
    policy = Adaptive(BACKUPS, Adaptive.Options(differ=0.1), runs=runs)
    world = World(Scheduler(policy, SchedulerConfig(compare=0, compare_one_in=10**9, grace=grace)))
    for number, name in enumerate(upstreams):
        world.join(name if upstreams.count(name) == 1 else f"{name}{number}", roles, node=name)
    world.join("own", frozenset({BACKUP}))
    for _ in range(10):
        world.arrive(1)
        world.pass_time(RUN)
        world.finish_all()
    assert not world.scheduler.degraded
    return world


def refused(world: World, query: int) -> bool:
    return query in world.failures and world.failures[query].reason is Reason.NO_INSTANCES


def test_queries_in_flight_when_the_last_upstream_goes_are_answered_at_once() -> None:
    world = fleet()
    running = world.arrive(2)
    exact = world.arrive(1, exact=True)
    waits = world.arrive(1)
    world.leave("a")
    assert not world.failures
    world.leave("b")
    assert refused(world, exact[0])
    world.finish_all()
    assert [world.answers[each] for each in (*running, *waits)] == [Source.BACKUP] * 3


def test_what_a_gate_refuses_when_the_last_upstream_goes_fails_at_once() -> None:
    world = fleet("a")
    world.refuses = lambda query, source: True
    (query,) = world.arrive(1)
    world.leave("a")
    assert query not in world.failures
    world.finish_all()
    assert refused(world, query)


def stuck(world: World) -> list[int]:
    """Every upstream has a query, and finishes none for long."""
    queries = world.arrive(2, exact=True)
    world.pass_time(STUCK + 0.1)
    world.do(world.scheduler.process_measured(world.now, 0.0, 0.1))
    return queries


def test_while_every_upstream_is_stuck_stand_ins_answer_and_the_rest_fails_at_once() -> None:
    world = fleet()
    first = stuck(world)
    assert world.scheduler.degraded
    (late,) = world.arrive(1)
    world.finish("own")
    assert world.answers[late] is Source.BACKUP
    (exact,) = world.arrive(1, exact=True)
    assert refused(world, exact)
    world.refuses = lambda query, source: True
    (doubtful,) = world.arrive(1)
    world.finish("own")
    assert refused(world, doubtful)
    assert not world.failures.keys() & set(first), "those that run may still be answered"
    world.finish("a")
    assert not world.scheduler.degraded
    (after,) = world.arrive(1, exact=True)
    world.finish_all()
    assert world.answers[first[0]] is world.answers[after] is Source.MODEL


def test_a_query_that_came_in_an_outage_is_the_model_s_once_that_is_over() -> None:
    world = fleet()
    stuck(world)
    (query,) = world.arrive(1)
    world.finish("a")
    assert not world.scheduler.degraded
    world.refuses = lambda query, source: True
    world.finish("own")
    world.finish_all()
    assert world.answers[query] is Source.MODEL


def test_a_query_is_tried_on_stuck_upstreams_once_nothing_runs_there() -> None:
    world = fleet()
    world.abandon(*stuck(world))
    for instance in sorted(world.running):
        world.fail(instance)
    assert not world.scheduler.degraded
    (probe,) = world.arrive(1, exact=True)
    assert world.scheduler.degraded
    (other,) = world.arrive(1, exact=True)
    assert refused(world, other)
    world.finish_all()
    assert world.answers[probe] is Source.MODEL
    assert not world.scheduler.degraded


@pytest.mark.parametrize("upstreams", ["ab", "abc", "aaaa"])
def test_one_query_that_is_slow_does_not_make_upstreams_stuck(upstreams: str) -> None:
    world = fleet(upstreams)
    world.arrive(1, exact=True)
    world.pass_time(3 * STUCK)  # it gets a copy
    world.do(world.scheduler.process_measured(world.now, 0.0, 0.1))
    assert not world.scheduler.degraded


def test_upstreams_are_not_stuck_while_one_answers() -> None:
    world = fleet()
    world.arrive(2, exact=True)
    for _ in range(3):
        world.pass_time(0.9 * STUCK)
        world.arrive(1, exact=True)
        world.finish("a")
    world.do(world.scheduler.process_measured(world.now, 0.0, 0.1))
    assert not world.scheduler.degraded
    assert not world.failures


def test_instances_that_run_stand_ins_as_well_are_waited_for() -> None:
    world = fleet(roles=ORIGINALS | {BACKUP})
    stuck(world)
    assert not world.scheduler.degraded


def test_what_no_stand_in_may_answer_waits_for_instances_that_are_replaced() -> None:
    world = fleet(grace=3.0)
    first = stuck(world)
    assert world.scheduler.degraded
    (late,) = world.arrive(1)
    world.finish("own")
    assert world.answers[late] is Source.BACKUP
    (exact,) = world.arrive(1, exact=True)
    world.refuses = lambda query, source: True
    (doubtful,) = world.arrive(1)
    world.finish("own")
    world.leave("a")
    world.leave("b")
    assert not world.failures
    world.join("c", ORIGINALS)
    for _ in range(4):
        world.finish_all()
    assert {world.answers[each] for each in (*first, exact, doubtful)} == {Source.MODEL}
