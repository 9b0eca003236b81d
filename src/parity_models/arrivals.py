"""When queries arrive."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Bursts:
    """Arrivals come `factor` times as often for `length` seconds, until every `every` seconds."""

    factor: float
    every: float
    length: float

    def compress(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """`times` (n,) at a constant rate, those in bursts the closer together for it."""
        calm = self.every - self.length
        cycle, into = np.divmod(times, calm + self.length * self.factor)
        within = np.where(into < calm, into, calm + (into - calm) / self.factor)
        return np.asarray(cycle * self.every + within)


def poisson_arrivals(
    rate: float, queries: int, seed: int, bursts: Bursts | None = None
) -> NDArray[np.float64]:
    """Times (queries,) in seconds of Poisson arrivals at `rate` a second, outside of `bursts`."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, queries)
    times = np.cumsum(gaps)
    return times if bursts is None else bursts.compress(times)
