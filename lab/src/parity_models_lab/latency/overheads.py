"""The overheads of serving, estimated from a calm run on cores that server and workers share."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parity_models_lab.latency.cores import Antagonist, Cores

SHARES = np.concatenate([np.linspace(0, 0.99, 100), 1 - np.geomspace(0.01, 1e-4, 60)])
"""The shares of queries whose quantiles of latency are kept where all of them matter."""


class Observed(NamedTuple):
    """The queries of a calm run, in ms: median latency, mean time on an instance, and the
    quantiles of latency at SHARES."""

    p50_ms: float
    busy_ms: float
    quantiles_ms: tuple[float, ...]


class Overheads(NamedTuple):
    """The overheads of serving, in ms.

    `held_ms` is how much longer a unit holds its instance, `outside_ms` the time of an answer
    outside of queue and instance, as quantiles at SHARES. The rest is computed besides units: see
    `Cores`.
    """

    held_ms: float = 0.0
    outside_ms: tuple[float, ...] = ()
    serving_ms: float = 0.0
    unseen_ms: float = 0.0
    unit_ms: float = 0.0

    def cores(
        self, count: int, antagonists: tuple[Antagonist, ...] = (), *, pinned: bool = False
    ) -> Cores:
        """Return so many cores on which the overheads are computed as well."""
        seconds = (self.serving_ms / 1e3, self.unseen_ms / 1e3, self.unit_ms / 1e3)
        return Cores(count, *seconds, pinned=pinned, antagonists=antagonists)

    @classmethod
    def of_calm_run(
        cls,
        real: Observed,
        unit_ms: float,
        serving_ms: float,
        simulated: Callable[["Overheads"], Observed],
    ) -> "Overheads":
        """Return the difference between a calm run and its simulation with the overheads so far.

        Workers computed for `unit_ms` besides the model's run, server and clients for `serving_ms`.
        Of the latter a query waits for the time that it spent outside of queue and instance; the
        rest is unseen.
        """
        known = cls(unit_ms=max(0.0, unit_ms))
        bare = simulated(known)
        held = max(0.0, real.busy_ms - bare.busy_ms)
        waited = min(serving_ms, max(0.0, real.p50_ms - bare.p50_ms - held))
        known = known._replace(held_ms=held, serving_ms=waited, unseen_ms=serving_ms - waited)
        pairs = zip(real.quantiles_ms, simulated(known).quantiles_ms, strict=True)
        return known._replace(outside_ms=tuple(sorted(max(0.0, ms - less) for ms, less in pairs)))


def with_outside(
    latencies: NDArray[np.float64], outside_ms: tuple[float, ...], seed: int
) -> NDArray[np.float64]:
    """Add to latencies (n,) in seconds times drawn from the quantiles `outside_ms` at SHARES."""
    if not outside_ms:
        return latencies
    shares = np.random.default_rng((seed, 2)).random(len(latencies))
    return np.asarray(latencies + np.interp(shares, SHARES, outside_ms) / 1e3)
