"""Shuffles: transfers between workers, which delay the units of both."""

import pickle

import pytest

from parity_models.emulation import Constant, FaultPlan, Shuffles, Transfers, Uniform, WorkerFaults

SHUFFLES = Shuffles(transfers=4, workers=18, length=Uniform(low=0.5, high=2), delay=Constant(0.05))


def test_as_many_transfers_run_at_all_times_as_the_plan_says() -> None:
    transfers = Transfers(SHUFFLES, seed=1)
    for tenth in range(1, 300):
        active = [transfers.active(worker, tenth / 10) for worker in range(18)]
        assert sum(active) == 2 * SHUFFLES.transfers


def test_of_transfers_between_workers_that_are_not_asked_about_nothing_is_remembered() -> None:
    everyone, alone = Transfers(SHUFFLES, seed=1), Transfers(SHUFFLES, seed=1, only=5)
    sizes = {}
    for tenth in range(1000):
        assert alone.active(5, tenth / 10) == everyone.active(5, tenth / 10)
        sizes[tenth] = len(pickle.dumps(alone)), len(pickle.dumps(everyone))
    assert sizes[999][0] < sizes[100][0] + 500
    assert sizes[999][1] > sizes[100][1] + 5000, "of all others it is"


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
