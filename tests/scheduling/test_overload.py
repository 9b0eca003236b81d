"""Under overload as much is answered in time as there is capacity for."""

from collections.abc import Callable

import pytest

from overload import Overload
from parity_models.scheduling import (
    BACKUP,
    NoRedundancy,
    Policy,
)
from parity_models.scheduling.policies import (
    Adaptive,
    Hedging,
    Replication,
    StandIns,
)
from scheduling_world import code


def check(overload: Overload, share: float) -> None:
    overload.run()
    assert overload.goodput >= share
    assert not overload.arrived, "every query ended"
    assert overload.p99() <= overload.deadline
    assert overload.largest < 7000, "no more than max_queue queries wait"
    assert overload.p99(since=overload.seconds + 1) < 0.05
    assert overload.calm_failures == 0
    assert all(retry > 0 for retry in overload.retries)


@pytest.mark.parametrize("deadline", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("times", [1.2, 2.0, 3.0, 5.0])
def test_overload_leaves_nearly_all_of_capacity_useful(times: float, deadline: float) -> None:
    check(Overload(NoRedundancy(), times, deadline, seconds=5), 0.85 if times == 1.2 else 0.9)


@pytest.mark.parametrize("deadline", [0.1, 10.0])
@pytest.mark.parametrize("times", [1.2, 3.0])
def test_redundancy_takes_no_capacity_from_originals(times: float, deadline: float) -> None:
    overload = Overload(Adaptive(StandIns(code(), (BACKUP,))), times, deadline, seconds=5).run()
    assert overload.goodput >= (0.85 if times == 1.2 else 0.9)
    assert overload.p99() <= deadline


@pytest.mark.parametrize(
    ("policy", "share"),
    [(lambda: Replication(Replication.Options(copies=2)), 0.45), (lambda: Hedging(), 0.8)],
)
def test_copies_are_counted(policy: Callable[[], Policy], share: float) -> None:
    overload = Overload(policy(), 3.0, 1.0, seconds=5).run()
    assert overload.goodput >= share
    assert overload.p99() <= 1.0


def test_batches_are_counted() -> None:
    overload = Overload(NoRedundancy(), 3.0, 1.0, seconds=5, max_batch=8).run()
    assert overload.goodput >= 0.9
    assert overload.p99() <= 1.0


def test_slow_models_are_not_refused_for_a_queue_that_is_short_for_them() -> None:
    overload = Overload(NoRedundancy(), 0.8, 60.0, seconds=200, service=1.0, calm=0).run()
    assert not overload.failures
