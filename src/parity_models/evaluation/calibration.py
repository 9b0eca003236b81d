"""Calibrating gates: the confidence from which on stand-ins agree with F often enough.

Thresholds are tested on held-out queries (Angelopoulos, Bates et al., Learn then Test, 2021). The
hypothesis of a threshold is that, of the outputs above it, less than the level agree. Its p-value
is binomial, so that a threshold alone would be that of Clopper and Pearson (Biometrika, 1934).
Thresholds are tested one after the other towards more coverage, and the last is taken that was
rejected before the first that was not: so the probability that the true agreement is below the
level is at most RISK, whatever the models and however many thresholds there are (fixed sequence
testing). The thresholds are quantiles of the confidence in other queries than they are tested on.
"""

from collections.abc import Iterable
from math import log, sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.evaluation.accuracy import Progress
from parity_models.evaluation.predictor import (
    Inputs,
    StandInAnswers,
    answers_of,
    deployed_predictor,
    queries_of,
    rows_to_run,
)
from parity_models.models.bundle import Bundle
from parity_models.models.gate import (
    EVERYTHING,
    LEAST_LEVEL,
    Calibration,
    GateLevel,
    StandIn,
    confidences,
    suited,
)
from parity_models.models.queries import rows_in
from parity_models.tasks.agreeing import Agreement, agreement_for

LEVELS: Final = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
"""The levels of agreement that are always calibrated, if they can be reached."""

RISK: Final = 0.05
"""The probability that the true agreement at a level is below it, at most."""

DESIGN: Final = 10
"""One of so many queries chooses which thresholds are tested; the others test them."""

THRESHOLDS: Final = 200
"""Thresholds that are tested at most."""

FIRST: Final = 6.0
"""The first threshold lets so many times the answers through that would do if all of them agreed:
some of the surest disagree, too."""

Array = NDArray[Any]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def calibrate(
    bundle: Bundle,
    inputs: Inputs,
    *,
    metric: str = "top-1",
    levels: Iterable[float] = LEVELS,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[StandIn, Calibration]:
    """Return the gate of every stand-in of `bundle`, by n held-out queries.

    The queries must be like those that will be served, and neither model nor stand-in may have been
    fitted to them; labels are not needed. What agrees follows from `metric`. Levels that cannot be
    reached, or shown to be with so few queries, are left out. Raises DataError for inputs that do
    not fit the bundle or that models answer with what is not finite, and UserError for levels out
    of range.
    """
    wanted = check_levels(levels)
    queries = queries_of(bundle, inputs)
    total = rows_in(queries) + rows_to_run(bundle, rows_in(queries))

    def on_rows(rows: int) -> None:
        if progress is not None:
            progress(rows, total)

    predictions = deployed_predictor(bundle, on_rows=on_rows)(queries)
    agreement = agreement_for(metric, predictions)
    answers = answers_of(bundle, queries, predictions, seed=seed, independent=True, on_rows=on_rows)
    return {
        stand_in: calibrate_answers(found, predictions[found.rows], agreement, wanted, seed)
        for stand_in, found in answers.items()
    }


def check_levels(levels: Iterable[float]) -> tuple[float, ...]:
    """The levels, each once, ascending. Raises UserError for one that is no share."""
    wanted = sorted(set(levels))
    for level in wanted:
        if not LEAST_LEVEL <= level < 1:
            raise UserError(
                f"an agreement is {LEAST_LEVEL:g} or more and below 1, not {level:g}: 0.99 stands "
                "for 99 of 100"
            )
    return tuple(wanted)


def calibrate_answers(
    found: StandInAnswers,
    predictions: Array,
    agreement: Agreement,
    levels: tuple[float, ...],
    seed: int = 0,
) -> Calibration:
    """The gate of a stand-in that gave answers `found`, where F gives `predictions` (m, ...)."""
    confidence = suited(agreement.kind, found.outputs)
    sure = confidences(confidence, found.outputs)
    agreed = agreement(found.outputs, predictions)
    reached = (learn_threshold(sure, agreed, level, seed) for level in levels)
    return Calibration(
        agreement.kind,
        agreement.tolerance,
        confidence,
        len(sure),
        RISK,
        tuple(level for level in reached if level is not None),
    )


def learn_threshold(
    confidence: Floats, agreed: Mask, level: float, seed: int = 0
) -> GateLevel | None:
    """The threshold with the most coverage that was shown to keep `level`, or None.

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
    """Thresholds of ever more coverage, for `tested` answers: quantiles of the `confidence` of
    others, and one that lets everything through."""
    quantiles = np.quantile(confidence, np.linspace(0, 1, THRESHOLDS), method="lower")
    thresholds: list[float] = [*np.unique(quantiles)[::-1].tolist(), EVERYTHING]
    enough = log(RISK) / log(level)
    first = min(FIRST * enough, sqrt(enough * tested))
    covered = [(confidence >= threshold).mean() for threshold in thresholds]
    return [
        each for each, share in zip(thresholds, covered, strict=True) if share * tested >= first
    ]


def p_value(disagreed: int, given: int, level: float) -> float:
    """The probability that at most `disagreed` of `given` answers do, where `level` of all agree.

    1 where more do than are expected.
    """
    if disagreed >= given * (1 - level) + 1 or not given:
        return 1.0
    i = np.arange(1, disagreed + 1)
    ratios = np.log((given - i + 1) / i) + log((1 - level) / level)
    terms = given * log(level) + np.concatenate([[0.0], np.cumsum(ratios)])
    return float(min(1.0, np.exp(np.logaddexp.reduce(terms))))
