"""Workers that are slower for a time: old generations, degraded ones, cold ones, nodes."""

from typing import Any

import msgspec
import pytest

from parity_models.emulation import (
    ColdStart,
    Constant,
    Degradation,
    FaultPlan,
    Kill,
    Pauses,
    Slowdowns,
    WorkerFaults,
)


def takes(plan: FaultPlan, worker: int, *times: float) -> list[float]:
    """How long units that begin at these times take."""
    faults = WorkerFaults(plan, worker)
    return [round(faults.release(time, time) - time, 6) for time in times]


UNIT = FaultPlan(service_time=Constant(1.0))


def test_workers_of_a_slower_generation_take_a_multiple_of_the_time() -> None:
    plan = msgspec.structs.replace(UNIT, generations=(1.0, 1.7))
    assert [takes(plan, worker, 0.0)[0] for worker in range(4)] == [1.0, 1.7, 1.0, 1.7]


def test_a_rotating_set_degrades_slowly_and_is_then_as_new() -> None:
    plan = msgspec.structs.replace(UNIT, degradation=Degradation(sets=5, turn=20.0, factor=6.0))
    assert takes(plan, 0, 0.0, 10.0, 19.0, 20.0, 50.0, 110.0) == [1.0, 3.5, 5.75, 1.0, 1.0, 3.5]
    assert takes(plan, 6, 10.0, 30.0) == [1.0, 3.5]


def test_a_fifth_of_the_workers_is_degraded_at_any_time() -> None:
    degradation = Degradation(sets=5, turn=20.0)
    for time in (5.0, 31.0, 77.0, 99.0):
        assert sum(degradation.at(worker, time) > 1 for worker in range(1000)) == 200


def test_a_worker_is_cold_after_a_kill_and_warms_up() -> None:
    kills = (Kill(0, 10.0), Kill(0, 30.0), Kill(1, 5.0))
    plan = msgspec.structs.replace(UNIT, kills=kills, cold_start=ColdStart(5.0, 4.0))
    expected = [1.0, 5.0, 3.0, 1.0, 5.0]
    assert takes(plan, 0, 9.0, 10.0, 12.0, 20.0, 30.0) == expected
    for number, time in enumerate((9.0, 10.0, 12.0, 20.0, 30.0)):
        assert takes(plan, 0, time) == [expected[number]], "a new process knows as much"
    assert takes(plan, 2, 10.0) == [1.0]


def test_factors_multiply_and_apply_to_what_really_ran_where_nothing_is_emulated() -> None:
    twice = FaultPlan(generations=(2.0,), slowdowns=Slowdowns(0.0, 1.0, Constant(0.5), factor=3.0))
    assert WorkerFaults(twice, 0).release(1.0, 1.1) == pytest.approx(1.0 + 0.1 * 6 + 0.5)


def test_computing_takes_as_long_as_waiting_would() -> None:
    plan = msgspec.structs.replace(UNIT, computing=True, generations=(2.0,))
    assert WorkerFaults(plan, 0).computing_time(1.0, "deployed") == 2.0
    assert WorkerFaults(plan, 0).release(1.0, 3.0, "deployed") == 3.0


@pytest.mark.parametrize(
    "change",
    [
        {"pauses": Pauses(5.0, Constant(1.0), nodes=3)},
        {"slowdowns": Slowdowns(5.0, 1.0, Constant(1.0), nodes=3)},
    ],
)
def test_workers_of_one_node_have_spells_together(change: dict[str, Any]) -> None:
    plan = msgspec.structs.replace(UNIT, **change)
    times = [2.0 * step for step in range(200)]
    courses = [takes(plan, worker, *times) for worker in range(6)]
    assert courses[0] == courses[3]
    assert courses[1] == courses[4]
    assert courses[0] != courses[1] != courses[2] != courses[0]
