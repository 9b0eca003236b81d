"""When queries arrive."""

import numpy as np
from numpy.typing import NDArray


def poisson_arrivals(rate: float, queries: int, seed: int) -> NDArray[np.float64]:
    """Times (queries,) in seconds of Poisson arrivals at `rate` a second."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, queries)
    return np.cumsum(gaps)
