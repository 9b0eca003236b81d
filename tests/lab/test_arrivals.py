"""When queries arrive: by a Poisson process, in bursts the more often."""

import numpy as np
import pytest

from parity_models.arrivals import poisson_arrivals
from parity_models_lab.latency.setting import Bursts

BURSTS = Bursts(factor=3.0, every=20.0, length=2.0)


def test_in_bursts_queries_come_a_multiple_as_often_as_between_them() -> None:
    times = BURSTS.compress(poisson_arrivals(100.0, 100_000, 1))
    assert (np.diff(times) >= 0).all()
    whole = times[times < times[-1] // 20 * 20]
    within = whole % 20 >= 18
    cycles = times[-1] // 20
    assert within.sum() / (2 * cycles) == pytest.approx(300, rel=0.03)
    assert (~within).sum() / (18 * cycles) == pytest.approx(100, rel=0.03)


def test_the_mean_rate_counts_bursts_in() -> None:
    times = BURSTS.compress(poisson_arrivals(100.0, 100_000, 1))
    assert len(times) / times[-1] == pytest.approx(120, rel=0.02)


def test_outside_of_bursts_arrivals_are_those_without_any() -> None:
    first = poisson_arrivals(100.0, 1000, 1)
    assert np.allclose(BURSTS.compress(first), first)
