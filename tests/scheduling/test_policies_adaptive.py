"""Adaptive parity sends what helps, when it helps and where there is capacity for it."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.scheduling import (
    DEPLOYED,
    Encode,
    Scheduler,
    SchedulerConfig,
    Source,
    parity_work,
)
from parity_models.scheduling.dispatch import Dispatch, LatencyAware, SingleQueue
from parity_models.scheduling.policies import AdaptiveParity, Hedging, Parity
from parity_models.scheduling.policies.interference import Interference
from parity_models.scheduling.policies.margin import Margin
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Task, Unit
from scheduling_world import World, code, run_times, undisturbed

BOTH = frozenset({DEPLOYED, parity_work(0)})


# Run times


@given(st.lists(st.sampled_from([1.0, 1.5, 2.0, 4.0, 9.0]), min_size=1), st.floats(0, 10))
def test_of_units_that_all_finished_the_share_longer_is_counted(
    times: list[float], seconds: float
) -> None:
    known = run_times(*((time, True) for time in times))
    assert known.share_longer(seconds) == pytest.approx(
        sum(time > seconds for time in times) / len(times)
    )


@given(st.lists(st.tuples(st.floats(0.1, 10), st.booleans()), min_size=1))
def test_fewer_units_take_longer_than_a_longer_time(units: list[tuple[float, bool]]) -> None:
    known = run_times(*units)
    shares = [known.share_longer(seconds) for seconds in (0.0, 1.0, 2.0, 5.0, 9.0, 20.0)]
    assert shares[0] == 1
    assert all(0 <= after <= before for before, after in pairwise(shares))


def test_units_cut_short_count_until_they_were() -> None:
    known = run_times((1, True), (2, False), (3, True), (4, False), (5, True))
    assert known.share_longer(1) == pytest.approx(4 / 5)
    assert known.share_longer(3) == pytest.approx(4 / 5 * 2 / 3)
    assert known.median == 5


def test_units_cut_short_do_not_hide_that_units_are_slow() -> None:
    known = run_times(*[(1.0, True)] * 8, (1.2, False), (1.2, False))
    assert known.share_longer(2.0) == pytest.approx(0.2)


def test_where_all_units_take_as_long_one_is_worth_doubling_once_it_is_like_none_of_them() -> None:
    assert run_times(*[(1.0, True)] * 100).worth_doubling(0.25, 0.1) == 2.0


def test_a_unit_is_worth_doubling_once_it_is_likely_to_take_long() -> None:
    known = run_times(*[(1.0, True)] * 90, *[(9.0, True)] * 10)
    assert known.worth_doubling(0.25, 0.1) == 1.0


def test_a_unit_that_is_nearly_done_whenever_it_is_slow_is_not_worth_doubling() -> None:
    known = run_times(*[(1.0, True)] * 80, *[(2.5, True)] * 20)
    assert known.worth_doubling(0.25, 0.1) == 1.0
    assert known.worth_doubling(0.1, 0.1) == 3.5


def test_nothing_is_worth_doubling_while_nothing_is_known() -> None:
    assert RunTimes().worth_doubling(0.25, 0.1) is None
    assert RunTimes().share_longer(1.0) == 1.0
    assert run_times((1.0, False)).median is None


# The margin


@given(st.lists(st.floats(0, 4)))
def test_a_margin_keeps_to_its_bounds(latencies: list[float]) -> None:
    margin = Margin(run_times(*[(1.0, True)] * 10))
    for latency in latencies:
        margin.answered(latency)
        assert 0 <= margin.kept(100) <= margin.fluctuation(100) == 10


def test_a_margin_is_as_wide_as_it_takes_for_the_median_query_not_to_wait() -> None:
    margin = Margin(run_times(*[(1.0, True)] * 10))
    for latency in [1.1] * 180 + [1.0] * 80:
        margin.answered(latency)
    assert margin.kept(100) == 5
    for _ in range(300):
        margin.answered(1.0)
    assert margin.kept(100) == 0


def test_a_margin_is_narrow_where_batches_are_not_full() -> None:
    margin = Margin(run_times(*[(1.0, True)] * 10))
    for _ in range(200):
        margin.answered(1.1)
    unit = Unit(0, "a", [Task(DEPLOYED, query, "kind") for query in range(2)], 0.0)
    for _ in range(200):
        margin.ran(unit, 2)
    assert margin.kept(100) == 10
    for _ in range(200):
        margin.ran(unit, 4)
    assert margin.kept(100) == 0


def test_a_margin_stays_while_no_run_times_are_known() -> None:
    margin = Margin(RunTimes())
    for _ in range(1000):
        margin.answered(9.0)
    assert margin.kept(100) == 0


# The policy


SOME_SLOW = [(1.0, True)] * 90 + [(9.0, True)] * 10
"""Most units take a second, one in ten nine seconds."""

SOME_LATE = [(1.0, True)] * 90 + [(3.0, True)] * 6 + [(20.0, True)] * 4
"""Units are slow after a second, and late after three."""


def adaptive_world(
    instances: int,
    units: list[tuple[float, bool]],
    budget: float = 1.0,
    dispatch: Dispatch | None = None,
    interference: Interference | None = None,
) -> World:
    """Idle instances, and a policy that has seen these units: how long they ran, to their end?"""
    policy = AdaptiveParity(
        code(),
        hedge_budget=budget,
        run_times=run_times(*units),
        interference=undisturbed() if interference is None else interference,
    )
    world = World(Scheduler(policy, dispatch=dispatch), code())
    for instance in range(instances):
        world.join(f"{instance}", BOTH)
    return world


def runs(world: World) -> list[str]:
    return [run.work for run in world.running.values()]


def test_sends_nothing_where_all_units_take_as_long() -> None:
    world = adaptive_world(9, [(1.0, True)] * 100)
    world.arrive(2)
    world.pass_time(1.9)
    assert runs(world) == [DEPLOYED] * 2
    assert not any(isinstance(action, Encode) for action in world.log)


def test_sends_parity_at_once_where_some_units_are_slow() -> None:
    world = adaptive_world(9, SOME_SLOW)
    world.arrive(2)
    assert runs(world) == [DEPLOYED, DEPLOYED, parity_work(0)]


def test_sends_late_copies_alone_where_spare_work_slows_originals_down() -> None:
    world = adaptive_world(9, SOME_LATE, interference=Interference())
    world.arrive(2)
    world.pass_time(2.9)
    assert runs(world) == [DEPLOYED] * 2
    world.pass_time(0.2)
    assert runs(world) == [DEPLOYED] * 4


def test_the_copy_of_a_late_query_queues_behind_originals_that_wait() -> None:
    world = adaptive_world(2, SOME_LATE, interference=Interference())
    world.arrive(4)
    world.pass_time(3.1)
    world.finish("0")
    assert world.running["0"].subjects == (2,)
    world.pass_time(0.1)
    world.finish("0")
    assert world.running["0"].subjects == (3,)
    world.finish("0")
    assert world.running["0"].subjects == (1,)


def test_a_late_query_for_which_there_is_no_budget_is_looked_at_again() -> None:
    world = adaptive_world(9, SOME_LATE, budget=1e-9, interference=Interference())
    world.arrive(12)
    world.pass_time(3.1)
    for instance in range(9, 25):
        world.join(f"{instance}", BOTH)
    copied = runs(world).count(DEPLOYED) - 12
    assert copied < 12
    assert world.wake_at is not None
    assert world.wake_at <= world.now + 2


def test_sends_parity_once_it_knows_how_long_a_few_units_run_alone() -> None:
    world = World(Scheduler(AdaptiveParity(code())), code())
    for number in range(9):
        world.join(f"{number}", BOTH)
    sent = []
    for _ in range(20):
        world.arrive(2)
        sent.append(parity_work(0) in runs(world))
        world.pass_time(1.0)
        for instance in sorted(world.running):
            world.finish(instance)
    assert not any(sent[:10])
    assert any(sent[10:])


def let_a_query_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One late answer, from which all is learned."""
    monkeypatch.setattr("parity_models.scheduling.policies.margin.STEP", 1.0)
    world.arrive(1)
    world.pass_time(1.1)
    while world.running:
        world.finish(min(world.running))


def test_keeps_instances_idle_for_queries_about_to_arrive_where_queries_are_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = adaptive_world(11, SOME_SLOW, dispatch=SingleQueue())
    let_a_query_wait(world, monkeypatch)
    world.arrive(8)
    assert runs(world) == [DEPLOYED] * 8, "three are kept: the root of eight, rounded"
    world.join("another", BOTH)
    assert runs(world).count(parity_work(0)) == 1


def test_keeps_none_idle_while_queries_are_answered_on_time() -> None:
    world = adaptive_world(9, SOME_SLOW)
    world.arrive(8)
    assert runs(world) == [DEPLOYED] * 8 + [parity_work(0)]


def test_fills_the_group_of_a_lone_query_soon() -> None:
    world = adaptive_world(9, SOME_SLOW)
    world.arrive(2)
    for instance in sorted(world.running):
        world.finish(instance)
    world.arrive(1)
    world.pass_time(0.14)
    assert runs(world) == [DEPLOYED]
    world.pass_time(0.02)
    assert runs(world) == [DEPLOYED, parity_work(0)]


def test_copies_a_slow_query_on_spare_capacity_and_cancels_what_is_not_needed() -> None:
    world = adaptive_world(9, SOME_SLOW)
    world.arrive(1)
    world.pass_time(0.9)
    assert runs(world) == [DEPLOYED]
    world.pass_time(0.2)
    assert runs(world) == [DEPLOYED] * 2
    original, copy = world.running
    world.finish(copy)
    assert world.answers == {0: Source.MODEL}
    assert world.cancelled == {world.running[original].unit}


def test_lets_the_copy_of_a_late_query_take_its_turn_among_originals_that_wait() -> None:
    world = adaptive_world(2, SOME_LATE)
    world.arrive(3)
    world.pass_time(1.5)
    world.finish("0")
    assert world.running["0"].subjects == (2,), "query 1 is slow; its copy can wait"
    world.pass_time(1.7)
    world.arrive(1)
    world.finish("0")
    assert world.running["0"].subjects == (1,), "it is late, and was before query 3 came"


def test_does_not_copy_while_a_parity_query_has_run_for_less() -> None:
    world = adaptive_world(9, SOME_SLOW)
    world.arrive(1)
    world.pass_time(0.9)
    world.arrive(1)
    world.pass_time(0.9)
    assert runs(world) == [DEPLOYED, DEPLOYED, parity_work(0)]
    world.pass_time(0.2)
    assert runs(world).count(DEPLOYED) == 4


def test_sends_parity_without_a_margin_where_batches_are_not_full() -> None:
    policy = AdaptiveParity(code(), run_times=run_times(*SOME_SLOW), interference=undisturbed())
    world = World(Scheduler(policy, SchedulerConfig(max_batch=4)), code(), max_batch=4)
    world.join("0", BOTH)
    for _ in range(200):
        world.arrive(1)
        world.pass_time(1.0)
        while world.running:
            world.finish("0")
    world.join("1", BOTH)
    world.join("2", BOTH)
    world.arrive(1)
    world.arrive(1)
    assert parity_work(0) in runs(world)


def test_hurries_no_more_copies_than_the_budget_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    world = adaptive_world(40, SOME_LATE, budget=0.01)
    let_a_query_wait(world, monkeypatch)
    world.arrive(40)
    world.pass_time(4.0)
    for instance in range(12):
        world.join(f"new {instance}", BOTH)
    assert len(world.running) == 40 + 10, "two are kept idle"


def test_copies_an_original_that_hangs_though_no_unit_was_ever_slow() -> None:
    world = adaptive_world(9, [(1.0, True)] * 100)
    world.arrive(1)
    world.pass_time(1.9)
    assert runs(world) == [DEPLOYED]
    world.pass_time(0.2)
    assert runs(world) == [DEPLOYED] * 2


def test_does_not_copy_a_query_that_has_waited_but_hardly_run() -> None:
    world = adaptive_world(1, SOME_SLOW)
    world.arrive(2)
    world.pass_time(0.6)
    world.finish("0")
    for instance in range(1, 9):
        world.join(f"{instance}", BOTH)
    world.pass_time(0.9)
    assert runs(world).count(DEPLOYED) == 1
    world.pass_time(0.2)
    assert runs(world).count(DEPLOYED) == 2


@pytest.mark.parametrize(("dispatch", "parity_runs"), [(SingleQueue, True), (LatencyAware, False)])
def test_the_instance_kept_for_originals_is_not_a_slow_one(
    dispatch: type[Dispatch], parity_runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Margin, "kept", lambda *_: 1)
    scheduler = Scheduler(Parity(code(), Parity.Options(max_group_wait=None)), dispatch=dispatch())
    world = World(scheduler, code())
    instances = "slow", "a", "b", "c"
    for instance in instances:
        world.join(instance, BOTH)
    world.arrive(4)
    world.pass_time(1.0)
    for instance in instances[1:]:
        world.finish(instance)
    world.pass_time(9.0)
    world.finish("slow")
    while world.running:
        world.finish(min(world.running))
    world.arrive(2)
    assert (parity_work(0) in runs(world)) == parity_runs


@pytest.mark.parametrize("name", ["adaptive", "hedging"])
def test_units_that_took_no_time_do_not_have_queries_looked_at_for_ever(name: str) -> None:
    """A query that waits in the queue is looked at again, after some time."""
    policy = (
        AdaptiveParity(code(), run_times=run_times(*[(0.0, True)] * 100))
        if name == "adaptive"
        else Hedging(Hedging.Options(hedge_delay=1e-12))
    )
    scheduler = Scheduler(policy, SchedulerConfig())
    scheduler.instance_joined(1e6, "a", BOTH)
    scheduler.queries_arrived(1e6, [0, 1], "kind")
    later = scheduler.queries_arrived(1e6 + 1, [2], "kind")
    assert later


def test_an_exact_query_that_is_slow_is_copied() -> None:
    world = adaptive_world(9, SOME_SLOW)
    world.arrive(2, exact=True)
    assert runs(world) == [DEPLOYED] * 2
    world.pass_time(1.1)
    assert runs(world) == [DEPLOYED] * 4


def test_a_copy_that_has_used_up_its_attempts_is_not_sent_again() -> None:
    world = adaptive_world(9, SOME_LATE)
    (query,) = world.arrive(1)
    (original,) = world.running
    world.pass_time(1.5)
    failed = 0
    for _ in range(40):
        for instance in sorted(world.running.keys() - {original}):
            world.fail(instance)
            failed += 1
        world.pass_time(0.1)
    assert failed == 5, "as often as a task is tried"
    assert world.running.keys() == {original}
    world.finish(original)
    assert world.answers == {query: Source.MODEL}
    assert not any(world.scheduler.queue_depths().values())
