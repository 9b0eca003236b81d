"""How many instances preemptible work leaves idle is learned from how late answers are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimates import run_times
from parity_models.scheduling import DEPLOYED, Scheduler, parity_role
from parity_models.scheduling.dispatch import Dispatch, LatencyAware, SingleQueue
from parity_models.scheduling.policies import Parity
from parity_models.scheduling.policies.parity import Margin
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Query, Task, Unit
from scheduling_world import BOTH, World, code


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
    unit = Unit(0, "a", DEPLOYED, [Task(DEPLOYED, query, "kind") for query in range(2)], 0.0)
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


@pytest.mark.parametrize(("dispatch", "parity_runs"), [(SingleQueue, True), (LatencyAware, False)])
def test_the_instance_kept_for_originals_is_not_a_slow_one(
    dispatch: type[Dispatch], parity_runs: bool
) -> None:
    class KeepsOne(Parity):
        def arrived(self, port: Port, query: Query) -> None:
            super().arrived(port, query)
            port.keep_idle(1)

    policy = KeepsOne(code(), Parity.Options(max_group_wait=None))
    scheduler = Scheduler(policy, dispatch=dispatch())
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
    assert (parity_role(0) in {run.role for run in world.running.values()}) == parity_runs
