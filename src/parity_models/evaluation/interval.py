"""Confidence intervals of accuracies: they hold the true one in 95 of 100 cases."""

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.tasks.metrics import METRICS, score

Array = NDArray[Any]
Interval = tuple[float, float]

FEWEST = 30
"""An accuracy over fewer queries says nothing."""

NORMAL = 1.96
"""Deviations of a normal distribution that 95 of 100 cases are within."""

RESAMPLED = 200
"""How often scores that are no shares are computed anew."""


def too_few(queries: int) -> str | None:
    """A sentence, where so many test queries say nothing."""
    if queries >= FEWEST:
        return None
    return (
        f"warning: {queries} queries are too few to say how often stand-ins agree with the model; "
        f"give {10 * FEWEST} --inputs or more"
    )


def share_interval(share: float, rows: int) -> Interval | None:
    """Return the interval of a share of `rows` queries (Wilson, JASA 1927); None for too few."""
    if rows < FEWEST:
        return None
    square = NORMAL**2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    reach = NORMAL * sqrt(share * (1 - share) / rows + square / (4 * rows**2)) / (1 + square / rows)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def score_interval(metric: str, outputs: Array, labels: Array) -> Interval | None:
    """Return the interval of the score of `outputs` (n, ...); None for too few of them.

    Scores that are no shares are computed for queries drawn again and again with replacement
    (the bootstrap: Efron, Annals of Statistics 1979).
    """
    rows = len(outputs)
    if METRICS[metric].kind == "classes":
        return share_interval(score(metric, outputs, labels), rows)
    if rows < FEWEST:
        return None
    rng = np.random.default_rng(0)
    drawn = (rng.integers(rows, size=rows) for _ in range(RESAMPLED))
    scores = [METRICS[metric](outputs[some], labels[some]) for some in drawn]
    low, high = np.nanquantile(scores, (0.025, 0.975)).tolist()
    return low, high
