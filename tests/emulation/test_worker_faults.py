"""What goes wrong, and when, is decided by the plan alone."""

from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.emulation import (
    ColdStart,
    Constant,
    Degradation,
    Distribution,
    Empirical,
    Exponential,
    FaultPlan,
    Kill,
    Lie,
    LogNormal,
    Neighbours,
    Pauses,
    RandomKills,
    Slowdowns,
    Uniform,
    WorkerFaults,
)


def distributions() -> st.SearchStrategy[Distribution]:
    times = st.floats(0.001, 0.2)
    return st.one_of(
        times.map(Constant),
        times.map(lambda low: Uniform(low, 2 * low)),
        times.map(Exponential),
        st.builds(LogNormal, times, st.floats(0, 1)),
        st.lists(times, min_size=1, max_size=5).map(lambda seconds: Empirical(tuple(seconds))),
    )


PLANS = st.builds(
    FaultPlan,
    seed=st.integers(0, 100),
    service_time=st.none() | distributions(),
    slowdowns=st.none()
    | st.builds(Slowdowns, st.floats(0, 2), st.floats(0.001, 2), distributions()),
    pauses=st.none() | st.builds(Pauses, st.floats(0.01, 2), distributions()),
    generations=st.lists(st.floats(1, 3), max_size=3).map(tuple),
    degradation=st.none() | st.builds(Degradation, st.integers(1, 3), st.floats(0.1, 9)),
    cold_start=st.none() | st.builds(ColdStart, st.floats(1, 9), st.floats(0.1, 9)),
    random_kills=st.none() | st.builds(RandomKills, st.floats(0.5, 9)),
)
UNITS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.05)), max_size=40)
"""How long the worker idles before each of its units, and how long it computes."""


def work_through(
    faults: WorkerFaults, units: list[tuple[float, float]], now: float = 0.0
) -> list[tuple[float, float]]:
    """When each of the units begins and is released."""
    history = []
    for idle, compute in units:
        began = now + idle
        now = faults.release(began, began + compute)
        history.append((began, now))
    return history


@given(PLANS, UNITS, st.integers(0, 5))
def test_the_same_plan_does_the_same_to_the_same_work(
    plan: FaultPlan, units: list[tuple[float, float]], worker: int
) -> None:
    history = work_through(WorkerFaults(plan, worker), units)
    assert history == work_through(WorkerFaults(plan, worker), units)


@given(PLANS, UNITS, st.integers(0, 40))
def test_a_restarted_worker_goes_on_where_its_predecessor_would_be(
    plan: FaultPlan, units: list[tuple[float, float]], lived: int
) -> None:
    history = work_through(WorkerFaults(plan, 0), units)
    died = history[:lived][-1][1] if history[:lived] else 0.0
    restarted = work_through(WorkerFaults(plan, 0), units[lived:], died)
    assert history[lived:] == restarted


@given(PLANS, UNITS)
def test_faults_only_ever_take_time(plan: FaultPlan, units: list[tuple[float, float]]) -> None:
    for (began, released), (_, compute) in zip(
        work_through(WorkerFaults(plan, 0), units), units, strict=True
    ):
        assert released >= began + compute


def test_no_faults_before_they_begin_and_none_without_a_plan() -> None:
    harsh = FaultPlan(
        service_time=Constant(1.0),
        slowdowns=Slowdowns(0.0, 1.0, Constant(1.0)),
        pauses=Pauses(0.001, Constant(1.0)),
    )
    assert WorkerFaults(harsh, 0).release(-0.5, -0.2) == -0.2
    assert WorkerFaults(harsh, 0).release(0.5, 0.8) > 0.8
    assert WorkerFaults(FaultPlan(), 0).release(0.5, 0.8) == 0.8


def test_a_service_time_covers_the_computation_and_is_never_shorter() -> None:
    faults = WorkerFaults(FaultPlan(service_time=Constant(0.02)), 0)
    assert faults.release(1.0, 1.001) == pytest.approx(1.02)
    assert faults.release(2.0, 2.5) == 2.5


def test_slowdowns_delay_only_the_workers_they_are_for_and_only_for_spells() -> None:
    plan = FaultPlan(slowdowns=Slowdowns(2.0, 1.0, Constant(0.03), (0, 1)))
    slow = {
        worker: [
            released - began > 0.02
            for began, released in work_through(WorkerFaults(plan, worker), [(0.07, 0.01)] * 5000)
        ]
        for worker in range(3)
    }
    assert 0.2 < sum(slow[0]) / 5000 < 0.35
    assert slow[0] != slow[1]
    assert not any(slow[2])
    always = FaultPlan(slowdowns=Slowdowns(0.0, 1.0, Constant(0.03)))
    for began, released in work_through(WorkerFaults(always, 0), [(0.07, 0.01)] * 100):
        assert released - began == pytest.approx(0.04)


def test_a_paused_worker_gets_nowhere_until_the_pause_is_over() -> None:
    plan = FaultPlan(pauses=Pauses(1.0, Constant(0.5)))
    probes = [(0.001 * i, WorkerFaults(plan, 0).release(0.001 * i, 0.001 * i)) for i in range(4000)]
    paused = [time for time, released in probes if released > time]
    assert paused
    start, end = paused[0], WorkerFaults(plan, 0).release(paused[0], paused[0])
    assert end - start == pytest.approx(0.5, abs=0.0011)
    # A unit that is computed while the pause begins is held up by all of it.
    began = start - 0.1
    assert WorkerFaults(plan, 0).release(began, start + 0.05) == pytest.approx(end + 0.05, abs=2e-3)


@given(PLANS, UNITS, st.lists(st.floats(0, 1), min_size=40, max_size=40))
def test_a_unit_that_is_cancelled_is_released_between_then_and_its_end(
    plan: FaultPlan, units: list[tuple[float, float]], shares: list[float]
) -> None:
    faults, now = WorkerFaults(plan, 0), 0.0
    for (idle, compute), share in zip(units, shares, strict=False):
        began = now + idle
        released = faults.release(began, began + compute)
        at = began + share * (released - began)
        now = faults.cut(at)
        assert at <= now <= released + 1e-9
        assert faults.cut(released) == pytest.approx(released)
        assert now == faults.cut(at), "asking changes nothing"


def test_a_cancelled_unit_computes_no_more_but_delays_and_pauses_hold_it() -> None:
    computes = WorkerFaults(FaultPlan(service_time=Constant(1.0)), 0)
    assert computes.release(0.0, 0.0) == 1.0
    assert computes.cut(0.4) == 0.4
    slow = Slowdowns(0.0, 1.0, Constant(0.5))
    delayed = WorkerFaults(FaultPlan(service_time=Constant(1.0), slowdowns=slow), 0)
    began = next(t / 100 for t in range(100) if delayed.release(t / 100, t / 100) > t / 100 + 1.2)
    assert delayed.cut(began) == pytest.approx(began + 0.5)
    assert delayed.cut(began + 0.7) == pytest.approx(began + 0.7)
    paused = WorkerFaults(
        FaultPlan(service_time=Constant(100.0), pauses=Pauses(1.0, Constant(0.5))), 0
    )
    paused.release(0.0, 0.0)
    cut = [paused.cut(t / 1000) - t / 1000 for t in range(100_000)]
    assert max(cut) == pytest.approx(0.5, abs=2e-3), "the pause's length"
    assert sum(held > 0 for held in cut) / len(cut) == pytest.approx(1 / 3, abs=0.1)


def test_kills_come_in_order_and_are_the_worker_s_own() -> None:
    plan = FaultPlan(kills=(Kill(0, 9.0), Kill(0, 2.0), Kill(1, 1.0)))
    assert list(plan.kill_times(0)) == [2.0, 9.0]
    assert list(plan.kill_times(1)) == [1.0]
    assert list(plan.kill_times(2)) == []
    random = FaultPlan(kills=(Kill(0, 5.0),), random_kills=RandomKills(10.0, (0, 1)))
    times = [list(islice(random.kill_times(worker), 1000)) for worker in (0, 1)]
    assert times[0] == sorted(times[0])
    assert 5.0 in times[0]
    assert times[0] == list(islice(random.kill_times(0), 1000))
    assert 9.0 < times[1][-1] / 1000 < 11.0
    assert list(random.kill_times(2)) == []


def test_another_seed_is_another_course_of_events() -> None:
    def course(seed: int) -> list[tuple[float, float]]:
        plan = FaultPlan(seed=seed, pauses=Pauses(0.5, Exponential(0.1)))
        return work_through(WorkerFaults(plan, 0), [(0.1, 0.01)] * 50)

    assert course(1) == course(1) != course(2)


def test_measured_times_are_drawn_alike() -> None:
    rng = Random(1)
    drawn = [Empirical((0.01, 0.02, 0.02, 0.5)).draw(rng) for _ in range(4000)]
    shares = [drawn.count(seconds) / len(drawn) for seconds in (0.01, 0.02, 0.5)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.05)


def test_works_have_service_times_of_their_own() -> None:
    plan = FaultPlan(service_time=Constant(0.02), service_times={"backup": Constant(0.01)})
    worker = WorkerFaults(plan, 0)
    assert worker.release(1.0, 1.0, "deployed") == pytest.approx(1.02)
    assert worker.release(2.0, 2.0, "backup") == pytest.approx(2.01)


def test_a_unit_computes_for_its_service_time_only_where_the_plan_says_so() -> None:
    waiting = FaultPlan(service_time=LogNormal(0.02, 0.5))
    computing = FaultPlan(service_time=LogNormal(0.02, 0.5), computing=True)
    assert WorkerFaults(waiting, 0).computing_time(1.0, "deployed") == 0
    worker = WorkerFaults(computing, 0)
    assert worker.computing_time(-1.0, "deployed") == 0
    took = worker.computing_time(1.0, "deployed")
    assert took > 0
    assert worker.release(1.0, 1.0 + took, "deployed") == pytest.approx(1.0 + took)


def test_of_two_units_on_a_shared_accelerator_one_waits() -> None:
    plan = FaultPlan(
        service_time=Constant(0.01), neighbours=Neighbours(20.0, Constant(0.02), workers=(1,))
    )
    alone, beside = WorkerFaults(plan, 0), WorkerFaults(plan, 1)
    begun = [i * 0.05 for i in range(2000)]
    assert all(alone.release(at, at) == pytest.approx(at + 0.01) for at in begun)
    took = [beside.release(at, at) - at for at in begun]
    assert min(took) == pytest.approx(0.01)
    # Busy with 40 % of the time: so many units wait, for half of 0.02 s or more.
    waiting = [each - 0.01 for each in took if each > 0.0101]
    assert 0.3 < len(waiting) / len(took) < 0.55
    assert 0.009 < sum(waiting) / len(waiting) < 0.03


def test_a_lie_is_of_one_worker_one_work_and_one_spell() -> None:
    plan = FaultPlan(lies=(Lie(1, "other.onnx", start=2.0, length=3.0),))
    liar = WorkerFaults(plan, 1)
    told = [liar.files(time, "deployed") for time in (1.9, 2.0, 4.9, 5.0)]
    assert told == [[], ["other.onnx"], ["other.onnx"], []]
    assert liar.files(3.0, "parity-0") == []
    assert WorkerFaults(plan, 0).files(3.0, "deployed") == []
