"""Fault plans: what goes wrong, and when, is decided by the plan alone."""

import json
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.errors import FaultPlanError
from parity_models.faults import (
    MAX_PLAN_BYTES,
    Constant,
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
    Shuffles,
    Slowdowns,
    Transfers,
    Uniform,
    WorkerFaults,
    load_fault_plan,
)

EVERYTHING = {
    "seed": 7,
    "service_time": {"type": "lognormal", "median": 0.02, "sigma": 0.1},
    "slowdowns": {
        "mean_between": 4.0,
        "mean_length": 1.0,
        "delay": {"type": "uniform", "low": 0.02, "high": 0.06},
        "workers": [0, 2],
    },
    "pauses": {"mean_between": 5.0, "length": {"type": "exponential", "mean": 0.1}},
    "kills": [{"worker": 1, "at": 3.5}],
    "random_kills": {"mean_between": 30.0},
    "shuffles": {
        "transfers": 2,
        "workers": 4,
        "length": {"type": "uniform", "low": 1.0, "high": 2.0},
        "delay": {"type": "constant", "seconds": 0.01},
    },
}


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


def test_a_plan_is_read_from_a_file_or_given_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(EVERYTHING))
    plan = load_fault_plan(tmp_path / "plan.json")
    assert plan == load_fault_plan(str(tmp_path / "plan.json"))
    assert plan == load_fault_plan(json.dumps(EVERYTHING, indent=1))
    assert plan == FaultPlan(
        seed=7,
        service_time=LogNormal(0.02, 0.1),
        slowdowns=Slowdowns(4.0, 1.0, Uniform(0.02, 0.06), (0, 2)),
        pauses=Pauses(5.0, Exponential(0.1)),
        kills=(Kill(1, 3.5),),
        random_kills=RandomKills(30.0),
        shuffles=Shuffles(2, 4, Uniform(1.0, 2.0), Constant(0.01)),
    )
    assert load_fault_plan("{}") == FaultPlan()


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ("{", "is not a fault plan"),
        ('{"sed": 1}', "unknown field `sed`"),
        ('{"seed": "one"}', "Expected `int`"),
        ('{"pauses": {"mean_between": 1}}', "missing required field `length`"),
        ('{"service_time": {"type": "normal", "mean": 1}}', "Invalid value 'normal'"),
        ('{"service_time": {"type": "constant", "seconds": -1}}', ">= 0"),
        ('{"service_time": {"type": "constant", "seconds": NaN}}', "malformed"),
        ('{"service_time": {"type": "uniform", "low": 2, "high": 1}}', "must not be above high"),
        ('{"service_time": {"type": "empirical", "seconds": []}}', "length >= 1"),
        ('{"kills": [{"worker": -1, "at": 1}]}', ">= 0"),
        ('{"random_kills": {"mean_between": 0}}', ">= 0.001"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_reason(plan: str, reason: str) -> None:
    with pytest.raises(FaultPlanError, match=reason):
        load_fault_plan(plan)


def test_files_that_are_no_plans_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "long").write_bytes(b" " * (MAX_PLAN_BYTES + 1))
    for file, reason in [
        (tmp_path / "none", "cannot read"),
        (tmp_path, "cannot read"),
        (tmp_path / "binary", "is not a fault plan"),
        (tmp_path / "long", "is longer than"),
    ]:
        with pytest.raises(FaultPlanError, match=reason) as error:
            load_fault_plan(str(file))
        assert str(file) in str(error.value)


@pytest.mark.parametrize(
    "plan",
    [
        FaultPlan(kills=(Kill(3, 1.0),)),
        FaultPlan(random_kills=RandomKills(1.0, (0, 3))),
        FaultPlan(lies=(Lie(3, "other.onnx"),)),
        FaultPlan(pauses=Pauses(1.0, Constant(1.0), (3,))),
        FaultPlan(slowdowns=Slowdowns(1.0, 1.0, Constant(1.0), (3, 4))),
    ],
)
def test_a_plan_for_workers_that_are_not_there_is_refused(plan: FaultPlan) -> None:
    plan.check(5)
    with pytest.raises(FaultPlanError, match="names worker 3, but there are 3"):
        plan.check(3)


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


SHUFFLES = Shuffles(transfers=4, workers=18, length=Uniform(low=0.5, high=2), delay=Constant(0.05))


def test_as_many_transfers_run_at_all_times_as_the_plan_says() -> None:
    transfers = Transfers(SHUFFLES, seed=1)
    for tenth in range(1, 300):
        active = [transfers.active(worker, tenth / 10) for worker in range(18)]
        assert sum(active) == 2 * SHUFFLES.transfers


def test_of_transfers_between_workers_that_are_not_asked_about_nothing_is_remembered() -> None:
    everyone, alone = Transfers(SHUFFLES, seed=1), Transfers(SHUFFLES, seed=1, only=5)
    for tenth in range(1000):
        assert alone.active(5, tenth / 10) == everyone.active(5, tenth / 10)
    assert set(alone._spells) == {5}
    assert len(alone._spells[5]) <= SHUFFLES.transfers


def test_measured_times_are_drawn_alike() -> None:
    rng = Random(1)
    drawn = [Empirical((0.01, 0.02, 0.02, 0.5)).draw(rng) for _ in range(4000)]
    shares = [drawn.count(seconds) / len(drawn) for seconds in (0.01, 0.02, 0.5)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.05)


def test_shuffles_may_be_between_more_workers_than_there_are() -> None:
    FaultPlan(shuffles=SHUFFLES).check(12)


def test_transfers_move_from_worker_to_worker() -> None:
    transfers = Transfers(SHUFFLES, seed=1)
    for worker in range(18):
        assert any(transfers.active(worker, second) for second in range(300))


def test_a_unit_is_delayed_for_each_transfer_whether_the_course_is_shared_or_not() -> None:
    plan = FaultPlan(seed=3, shuffles=SHUFFLES)
    shared = Transfers(SHUFFLES, plan.seed)
    for worker in range(18):
        alone = WorkerFaults(plan, worker)
        together = WorkerFaults(plan, worker, shared)
        for began in (0.5, 1.5, 7.0):
            delay = alone.release(began, began) - began
            assert delay == together.release(began, began) - began
            assert delay == pytest.approx(0.05 * round(delay / 0.05))


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


def test_a_plan_names_workers_beside_neighbours_that_are_there() -> None:
    plan = FaultPlan(neighbours=Neighbours(1.0, Constant(0.1), workers=(3,)))
    with pytest.raises(FaultPlanError, match="names worker 3"):
        plan.check(3)


def test_a_lie_is_of_one_worker_one_work_and_one_spell() -> None:
    plan = FaultPlan(lies=(Lie(1, "other.onnx", start=2.0, length=3.0),))
    liar = WorkerFaults(plan, 1)
    told = [liar.files(time, "deployed") for time in (1.9, 2.0, 4.9, 5.0)]
    assert told == [[], ["other.onnx"], ["other.onnx"], []]
    assert liar.files(3.0, "parity-0") == []
    assert WorkerFaults(plan, 0).files(3.0, "deployed") == []
