"""Slowness and failures are decided by a plan alone, which is read from files or refused."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.documents import MAX_BYTES
from parity_models.errors import FaultPlanError
from parity_models.roles import Source
from parity_models.simulation.emulation import (
    ColdStart,
    Constant,
    Degradation,
    Distribution,
    Exponential,
    FaultPlan,
    Kill,
    Lie,
    LogNormal,
    Neighbours,
    Pauses,
    Shuffles,
    SlicedRandom,
    Slowdowns,
    Transfers,
    Uniform,
    WorkerFaults,
    load_fault_plan,
)


@given(seed=st.text(max_size=10), numbers=st.lists(st.integers(0, 2**40), min_size=1, max_size=9))
def test_numbers_depend_on_the_seed_and_the_slice_alone(seed: str, numbers: list[int]) -> None:
    drawn: dict[int, tuple[object, ...]] = {}
    rng = SlicedRandom(seed)
    for number in [*numbers, *reversed(numbers)]:
        rng.begin(number)
        values = (rng.random(), rng.gauss(0, 1), rng.choice(range(1000)), rng.expovariate(1))
        assert drawn.setdefault(number, values) == values
    assert len(set(drawn.values())) == len(drawn)


def test_numbers_are_the_same_in_every_process() -> None:
    assert SlicedRandom("0/3/units").random() == 0.28065372484342765


# Plans


def test_a_plan_is_read_from_a_file_or_given_as_it_is(tmp_path: Path) -> None:
    plan = FaultPlan(
        seed=7,
        service_time=LogNormal(0.02, 0.1),
        slowdowns=Slowdowns(4.0, 1.0, Uniform(0.02, 0.06), (0, 2)),
        pauses=Pauses(5.0, Exponential(0.1)),
        kills=(Kill(1, 3.5),),
        shuffles=Shuffles(2, 4, Uniform(1.0, 2.0), Constant(0.01)),
    )
    text = msgspec.json.encode(plan).decode()
    (tmp_path / "plan.json").write_text(text)
    for source in (tmp_path / "plan.json", str(tmp_path / "plan.json"), text):
        assert load_fault_plan(source) == plan
    assert load_fault_plan("{}") == FaultPlan()


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ("{", "it is not JSON: Input data was truncated"),
        ('{"a": ' + "[" * 9999, "it is not JSON: "),
        ('{"seed": "3"}', "seed: Expected `int`, got `str`"),
        ('{"kills": [{"worker": 1, "at": -1}]}', "kills[0].at: Expected `float` >= 0.0"),
        ('{"sed": 1}', "Object contains unknown field `sed`"),
        ('{"pauses": {"mean_between": 1}}', "pauses: Object missing required field `length`"),
        ('{"service_time": {"type": "normal", "mean": 1}}', "service_time.type: Invalid value 'no"),
        (
            '{"service_time": {"type": "uniform", "low": 2, "high": 1}}',
            "service_time: low (2.0) must not be above high (1.0)",
        ),
        (
            '{"service_times": {"deployed": {"type": "constant", "seconds": 1}, '
            '"backup": {"type": "constant", "seconds": -1}}}',
            "service_times[...].seconds: Expected `float` >= 0",
        ),
    ],
)
def test_invalid_plans_are_refused_with_the_reason(plan: str, reason: str) -> None:
    with pytest.raises(FaultPlanError, match=re.escape(reason)) as refused:
        load_fault_plan(plan)
    assert str(refused.value).startswith("the fault plan is not a fault plan: ")
    assert str(refused.value).endswith("; see docs/reference/faults.md")


def test_files_that_are_no_plans_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "long").write_bytes(b" " * (MAX_BYTES + 1))
    for file, reason in [
        (tmp_path / "none", "cannot read"),
        (tmp_path, "cannot read"),
        (tmp_path / "binary", "is not a fault plan"),
        (tmp_path / "long", "it has more than 1 MiB"),
    ]:
        with pytest.raises(FaultPlanError, match=reason) as error:
            load_fault_plan(str(file))
        assert str(file) in str(error.value)


def test_a_plan_for_workers_that_are_not_there_is_refused() -> None:
    for plan in (
        FaultPlan(kills=(Kill(3, 1.0),)),
        FaultPlan(lies=(Lie(3, "other.onnx"),)),
        FaultPlan(slowdowns=Slowdowns(1.0, 1.0, Constant(1.0), (3, 4))),
    ):
        plan.check(5)
        with pytest.raises(FaultPlanError, match="names worker 3, but there are 3"):
            plan.check(3)


# Effects


def distributions() -> st.SearchStrategy[Distribution]:
    times = st.floats(0.001, 0.2)
    return st.one_of(
        times.map(Constant),
        times.map(lambda low: Uniform(low, 2 * low)),
        times.map(Exponential),
        st.builds(LogNormal, times, st.floats(0, 1)),
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
    kills=st.lists(st.builds(Kill, st.just(0), st.floats(0.5, 9)), max_size=3).map(tuple),
)
UNITS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.05)), max_size=40)
"""For each unit, the worker's idle time before it, and its computing time."""


def work_through(
    faults: WorkerFaults, units: list[tuple[float, float]], now: float = 0.0
) -> list[tuple[float, float]]:
    """Return the times at which each unit begins and is released."""
    history = []
    for idle, compute in units:
        began = now + idle
        now = faults.release(began, began + compute)
        history.append((began, now))
    return history


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


def test_kills_come_in_order_and_are_the_worker_s_own() -> None:
    plan = FaultPlan(kills=(Kill(0, 9.0), Kill(0, 2.0), Kill(1, 1.0)))
    assert [plan.kill_times(worker) for worker in range(3)] == [[2.0, 9.0], [1.0], []]


# Workers that are slower for a time

UNIT = FaultPlan(service_time=Constant(1.0))


def takes(plan: FaultPlan, worker: int, *times: float) -> list[float]:
    """Return the run times of units that begin at these times."""
    faults = WorkerFaults(plan, worker)
    return [round(faults.release(time, time) - time, 6) for time in times]


def test_a_rotating_set_degrades_slowly_and_generations_take_a_multiple() -> None:
    plan = msgspec.structs.replace(UNIT, degradation=Degradation(sets=5, turn=20.0, factor=6.0))
    assert takes(plan, 0, 0.0, 10.0, 19.0, 20.0, 50.0, 110.0) == [1.0, 3.5, 5.75, 1.0, 1.0, 3.5]
    assert takes(plan, 6, 10.0, 30.0) == [1.0, 3.5]
    plan = msgspec.structs.replace(UNIT, generations=(1.0, 1.7))
    assert [takes(plan, worker, 0.0)[0] for worker in range(4)] == [1.0, 1.7, 1.0, 1.7]


def test_a_worker_is_cold_after_a_kill_and_warms_up() -> None:
    kills = (Kill(0, 10.0), Kill(0, 30.0), Kill(1, 5.0))
    plan = msgspec.structs.replace(UNIT, kills=kills, cold_start=ColdStart(5.0, 4.0))
    assert takes(plan, 0, 9.0, 10.0, 12.0, 20.0, 30.0) == [1.0, 5.0, 3.0, 1.0, 5.0]
    assert takes(plan, 0, 12.0) == [3.0], "a new process knows as much"
    assert takes(plan, 2, 10.0) == [1.0]


def test_factors_multiply_and_apply_to_what_really_ran_where_nothing_is_emulated() -> None:
    twice = FaultPlan(generations=(2.0,), slowdowns=Slowdowns(0.0, 1.0, Constant(0.5), factor=3.0))
    assert WorkerFaults(twice, 0).release(1.0, 1.1) == pytest.approx(1.0 + 0.1 * 6 + 0.5)


# Shuffles

SHUFFLES = Shuffles(transfers=4, workers=18, length=Uniform(low=0.5, high=2), delay=Constant(0.05))


def test_as_many_transfers_run_at_all_times_as_the_plan_says_and_move_about() -> None:
    transfers, seen = Transfers(SHUFFLES, seed=1), set()
    for tenth in range(1, 300):
        active = [transfers.active(worker, tenth / 10) for worker in range(18)]
        assert sum(active) == 2 * SHUFFLES.transfers
        seen |= {worker for worker in range(18) if active[worker]}
    assert len(seen) == 18


def test_of_two_units_on_a_shared_accelerator_one_waits() -> None:
    plan = FaultPlan(
        service_time=Constant(0.01), neighbours=Neighbours(20.0, Constant(0.02), workers=(1,))
    )
    alone, shared = WorkerFaults(plan, 0), WorkerFaults(plan, 1)
    begun = [i * 0.05 for i in range(2000)]
    assert all(alone.release(at, at) == pytest.approx(at + 0.01) for at in begun)
    took = [shared.release(at, at) - at for at in begun]
    assert min(took) == pytest.approx(0.01)
    # Busy with 40 % of the time: so many units wait, for half of 0.02 s or more.
    waiting = [each - 0.01 for each in took if each > 0.0101]
    assert 0.3 < len(waiting) / len(took) < 0.55
    assert 0.009 < sum(waiting) / len(waiting) < 0.03


def test_harder_queries_have_larger_doubts_and_are_refused_first() -> None:
    plan = FaultPlan(coverage=0.5, doubts=(0.0, 0.1, 0.2, 0.3), doubts_of={Source.BACKUP: (1.0,)})
    doubts = np.array([plan.doubt(query, Source.RECONSTRUCTION) for query in range(4000)])
    refused = np.array([plan.refuses(query, Source.RECONSTRUCTION) for query in range(4000)])
    np.testing.assert_array_equal(refused, doubts >= 0.2)
    counts = np.unique(doubts, return_counts=True)[1]
    np.testing.assert_allclose(counts, 1000, rtol=0.1)
    assert plan.doubt(7, Source.BACKUP) == 1.0
    assert FaultPlan().doubt(7, Source.BACKUP) == 0.0
    with pytest.raises(FaultPlanError, match="doubts must ascend"):
        load_fault_plan('{"doubts": [0.2, 0.1]}')
