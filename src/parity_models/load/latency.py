"""A load's result in a line: percentiles of latency, and what the answers were worth."""

import msgspec
import numpy as np

from parity_models.errors import LoadError
from parity_models.load.result import LoadResult
from parity_models.scheduling import Source


class LatencySummary(msgspec.Struct, frozen=True):
    """Latency percentiles over answered queries, and what became of the others.

    `gap_ms` is p99.9 − p50. `reconstructed_share` and `accuracy` are of the answered queries.
    """

    p50_ms: float
    p99_ms: float
    p999_ms: float
    gap_ms: float
    answered: int
    errors: int
    reconstructed_share: float
    accuracy: float


def summarise(result: LoadResult) -> LatencySummary:
    """Sum up a load. Raises LoadError if not one of its queries was answered."""
    answered = result.answered
    if not answered.any():
        raise LoadError(f"no query was answered: {result.errors()}")
    p50, p99, p999 = np.quantile(result.latency[answered] * 1e3, [0.5, 0.99, 0.999]).tolist()
    return LatencySummary(
        p50_ms=p50,
        p99_ms=p99,
        p999_ms=p999,
        gap_ms=p999 - p50,
        answered=int(answered.sum()),
        errors=int((~answered).sum()),
        reconstructed_share=float(result.came_from(Source.RECONSTRUCTION)[answered].mean()),
        accuracy=float(result.score[answered].mean()),
    )
