"""Calibrating gates: the confidence from which on stand-ins agree with F often enough.

Thresholds are tested on held-out queries (Angelopoulos, Bates et al., Learn then Test, 2021). The
hypothesis of a threshold is that less than the level of the outputs above it agree. Its p-value is
binomial; for a single threshold, this is the bound of Clopper and Pearson (Biometrika, 1934).
Thresholds are tested one after the other, towards more coverage, until the first whose hypothesis
is not rejected; the one before it is taken. So the probability that the true agreement is below the
level is at most RISK, whatever the models and the number of thresholds (fixed sequence testing).
The thresholds are quantiles of the confidence in queries that they are not tested on.
"""

from collections.abc import Iterable
from math import ceil, log, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.evaluation.outputs import Outputs
from parity_models.models.gate import (
    EVERYTHING,
    LEAST_LEVEL,
    Calibration,
    GateLevel,
    StandIn,
    confidences,
    suited,
)
from parity_models.tasks.metrics import agreement_for

LEVELS: Final = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
"""The levels of agreement that are always calibrated, if they can be reached."""

RISK: Final = 0.05
"""The maximum probability that the true agreement at a level is below it."""

DESIGN: Final = 10
"""One query in DESIGN chooses the thresholds; the others test them."""

THRESHOLDS: Final = 200
"""Maximum number of thresholds that are tested."""

FIRST: Final = 6.0
"""The first threshold lets FIRST times as many answers through as would be enough if all of them
agreed: some of the most confident disagree, too."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def calibrate_gates(
    outputs: Outputs, *, metric: str = "top-1", levels: Iterable[float] = LEVELS
) -> dict[StandIn, Calibration]:
    """Return the gate of every stand-in of a bundle, by n held-out queries.

    The queries must be like those that will be served, and neither model nor stand-in may have been
    fitted to them; labels are not needed. What agrees follows from `metric`. Levels that cannot be
    reached, or shown to be with so few queries, are left out. Raises UserError for levels out of
    range.
    """
    wanted = check_levels(levels)
    agreement = agreement_for(metric, outputs.predictions)
    gates: dict[StandIn, Calibration] = {}
    for stand_in, found in outputs.answers(independent=True).items():
        confidence = suited(agreement.kind, found.outputs)
        sure = confidences(confidence, found.outputs)
        agreed = agreement(found.outputs, outputs.predictions[found.rows])
        reached = [learn_threshold(sure, agreed, level, outputs.seed) for level in wanted]
        gates[stand_in] = Calibration(
            agreement.kind,
            agreement.tolerance,
            confidence,
            len(sure),
            RISK,
            tuple(level for level in reached if level is not None),
        )
    return gates


def check_levels(levels: Iterable[float]) -> tuple[float, ...]:
    """Return the levels, each once, ascending. Raises UserError for one out of range."""
    wanted = sorted(set(levels))
    for level in wanted:
        if not LEAST_LEVEL <= level < 1:
            raise UserError(
                f"an agreement is {LEAST_LEVEL:g} or more and below 1, not {level:g}: 0.99 stands "
                "for 99 of 100"
            )
    return tuple(wanted)


def check_enough(queries: int, level: float) -> None:
    """Raise UserError if so few queries could not show the level even if all agreed."""

    def shown(level: float) -> bool:
        return level ** (queries - queries // DESIGN) <= RISK

    if not shown(level):
        lower = max(filter(shown, LEVELS), default=None)
        fewest = ceil(log(RISK) / log(level) * DESIGN / (DESIGN - 1))
        raise UserError(
            f"the {queries:,} queries to calibrate with could not show an agreement of {level:g}, "
            f"which takes {fewest:,} or more: give {fewest / queries:.1f} times as many --inputs"
            + (f", or --agreement {lower:g}" if lower else "")
        )


def learn_threshold(
    confidence: Floats, agreed: Mask, level: float, seed: int = 0
) -> GateLevel | None:
    """Return the threshold with the most coverage that was shown to keep `level`, or None.

    `confidence` and `agreed` (n,) are of answers that are independent of each other. Of those, one
    in DESIGN, drawn by `seed`, says which thresholds there are; the others test them.
    """
    order = np.random.default_rng(seed).permutation(len(confidence))
    design, test = np.split(order, [len(order) // DESIGN])
    if not len(design):
        return None
    chosen = None
    for threshold in _sequence(confidence[design], level, len(test)):
        given = confidence[test] >= threshold
        number, right = int(given.sum()), int((given & agreed[test]).sum())
        if p_value(number - right, number, level) > RISK:
            break
        chosen = GateLevel(level, threshold, number / len(test), right / number)
    return chosen


def _sequence(confidence: Floats, level: float, tested: int) -> list[float]:
    """Return thresholds of ever more coverage, for `tested` answers: quantiles of the `confidence`
    of others, and one that lets everything through."""
    quantiles = np.quantile(confidence, np.linspace(0, 1, THRESHOLDS), method="lower")
    thresholds: list[float] = [*np.unique(quantiles)[::-1].tolist(), EVERYTHING]
    enough = log(RISK) / log(level)
    first = min(FIRST * enough, sqrt(enough * tested))
    covered = [(confidence >= threshold).mean() for threshold in thresholds]
    return [
        each for each, share in zip(thresholds, covered, strict=True) if share * tested >= first
    ]


def p_value(disagreed: int, given: int, level: float) -> float:
    """Return the probability that at most `disagreed` of `given` answers do, where `level` of all
    agree; 1 where more do than are expected.
    """
    if disagreed >= given * (1 - level) + 1 or not given:
        return 1.0
    i = np.arange(1, disagreed + 1)
    ratios = np.log((given - i + 1) / i) + log((1 - level) / level)
    terms = given * log(level) + np.concatenate([[0.0], np.cumsum(ratios)])
    return float(min(1.0, np.exp(np.logaddexp.reduce(terms))))
