"""Arrival times of queries."""

import numpy as np
from numpy.typing import NDArray


def poisson_arrivals(rate: float, queries: int, seed: int) -> NDArray[np.float64]:
    """Return times (queries,) in seconds of Poisson arrivals at `rate` per second."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, queries))
