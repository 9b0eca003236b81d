"""Accuracy under unavailability: A_a, A_d and A_o of a bundle, and the results of its gates.

(Kosaian et al., SOSP 2019, section 4, defines the three.)
"""

from collections.abc import Mapping
from itertools import combinations
from math import comb, sqrt
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.bundle.bundle import Accuracy
from parity_models.errors import DataError
from parity_models.evaluation.outputs import Outputs
from parity_models.tasks.metrics import Agreement, agreement, score
from parity_models.trust.gate import Calibration, StandIn, classes_of, confidences, refused

Array = NDArray[Any]
Mask = NDArray[np.bool_]

FRACTIONS = (0.01, 0.05, 0.1, 0.2)
"""Shares of predictions unavailable for which A_o is given."""

MOST_SETS = 128
"""Maximum number of sets of one size that are tried."""


def measure_accuracy(outputs: Outputs, labels: Array, *, metric: str = "top-1") -> Accuracy:
    """Measure the accuracies of a bundle on n queries and labels (n, ...).

    The queries are drawn into groups of k; the last group is filled up with queries of the first,
    which are not counted twice. Each member of a group is unavailable in turn, with all other
    predictions and r parity outputs at hand; for r > 1 also sets of 2 to r members, at most
    MOST_SETS each. The backup is judged on every query. Raises DataError for unfit labels.
    """
    code, rows = outputs.code, outputs.rows
    least = 1 if code is None else code.k
    if len(labels) != rows:
        raise DataError(f"there are {rows} inputs but {len(labels)} labels")
    if rows < least:
        raise DataError(f"there are {rows} inputs; this needs at least {least}")
    available = score(metric, outputs.predictions, labels)
    backup = None if outputs.backup is None else score(metric, outputs.backup, labels)
    if code is None:
        return Accuracy(metric, available, None, {}, None, rows, backup_accuracy=backup)
    alone, *several = [
        outputs.reconstructed(some_sets(code.k, number, outputs.seed))
        for number in range(1, code.r + 1)
    ]
    degraded = [score(metric, each.outputs, labels[each.rows]) for each in (alone, *several)]
    return Accuracy(
        metric=metric,
        available_accuracy=available,
        degraded_accuracy=degraded[0],
        overall={str(f): (1 - f) * available + f * degraded[0] for f in FRACTIONS},
        agreement=agreement(metric, alone.outputs, outputs.predictions[alone.rows]),
        queries=rows,
        degraded_by_unavailable=tuple(degraded),
        backup_accuracy=backup,
    )


def some_sets(of: int, size: int, seed: int) -> list[tuple[int, ...]]:
    """Return all sets of `size` out of `of` outputs, or MOST_SETS of them, drawn by `seed`."""
    if comb(of, size) <= MOST_SETS:
        return list(combinations(range(of), size))
    random = np.random.default_rng(seed)
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < MOST_SETS:
        drawn.add(tuple(sorted(random.choice(of, size, replace=False).tolist())))
    return sorted(drawn)


def replacement(accuracy: Accuracy) -> str | None:
    """Return advice to replace the model if labels show the backup to be at least as accurate."""
    model, found = accuracy.available_accuracy, accuracy.backup_accuracy
    if found is None or found < model or model == 1:  # without labels, the model is always right
        return None
    said = (
        f"Replace your model: the backup has a {accuracy.metric} of {found:.4f} on "
        f"{accuracy.queries:,} labelled queries, and the model {model:.4f}."
    )
    if accuracy.metric.startswith("top-"):
        chance = NORMAL * sqrt(2 * model * (1 - model) / accuracy.queries)
        said += f" A difference of up to {chance:.4f} may be chance."
    return said


# Gates


class GateResult(msgspec.Struct, frozen=True):
    """A stand-in with the gate of a level, or without one, if the level is None.

    `coverage` is the share of queries that it answers; `agreement` is the share of those answers
    that agree with F, `accuracy` their score by the metric, and `deployed_accuracy` F's score on
    the same queries; they are None for too few answers. With a `class_name`, only answers of this
    class of a one-sided gate count.
    """

    stand_in: StandIn
    level: float | None
    coverage: float
    agreement: float | None
    accuracy: float | None
    deployed_accuracy: float | None
    class_name: str | None = None


def measure_gates(
    outputs: Outputs,
    calibration: Mapping[StandIn, Calibration],
    labels: Array,
    *,
    metric: str = "top-1",
) -> tuple[GateResult, ...]:
    """Measure each calibrated stand-in without a gate and with the gate of each of its levels, on
    queries that were not used for calibration. Every query is reconstructed."""
    results: list[GateResult] = []
    answers = outputs.answers() if calibration else {}
    for stand_in, gates in calibration.items():
        if stand_in not in answers:
            continue
        found = answers[stand_in]
        predictions, right = outputs.predictions[found.rows], labels[found.rows]
        agreed = Agreement(gates.kind, gates.tolerance)(found.outputs, predictions)
        said, sure = classes_of(found.outputs), confidences(gates.confidence, found.gave)
        cases: list[tuple[float | None, Mask, str | None]] = [(None, np.ones_like(agreed), None)]
        for level in gates.levels:
            given = ~refused(sure, found.gave, level.thresholds)
            cases.append((level.level, given, None))
            cases += [
                (each.level, given & (said == each.number), gates.allowed[each.number])
                for each in level.classes
                if each.number is not None
            ]
        results += [
            GateResult(
                stand_in,
                promised,
                float(given.mean()),
                float(agreed[given].mean()) if given.any() else None,
                _score(metric, found.outputs[given], right[given]),
                _score(metric, predictions[given], right[given]),
                name,
            )
            for promised, given, name in cases
        ]
    return tuple(results)


def _score(metric: str, outputs: Array, labels: Array) -> float | None:
    try:
        return score(metric, outputs, labels) if len(labels) else None
    except DataError:  # too few for the metric to have a meaning
        return None


# Confidence intervals, which hold the true value in 95 of 100 cases

Interval = tuple[float, float]

FEWEST = 30
"""Minimum number of queries for an interval."""

NORMAL = 1.96
"""95 of 100 normally distributed cases lie within this many deviations of the mean."""


def share_interval(share: float, rows: int) -> Interval | None:
    """Return the interval of a share of `rows` queries (Wilson, JASA 1927); None for too few."""
    if rows < FEWEST:
        return None
    square = NORMAL**2
    middle = (share + square / (2 * rows)) / (1 + square / rows)
    reach = NORMAL * sqrt(share * (1 - share) / rows + square / (4 * rows**2)) / (1 + square / rows)
    return max(0.0, middle - reach), min(1.0, middle + reach)
