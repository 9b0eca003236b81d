"""Doubt: the probability that a stand-in's output differs from the model's, and its audit.

A curve that is fitted to calibration queries gives each output's doubt by its confidence. The truth
may be r times the curve. So an audit counts how many outputs differed, D, and how many were
expected to, E, and bounds r from above by upper(D) / E. Every doubt is multiplied by that bound, so
the budget holds with a probability of 1 - RISK. There are two kinds of evidence, which share RISK.

- In calibration, among the outputs that the budget would let through, judged by curves that were
  fitted to others. The bound is the exact one of a Poisson variable (Garwood, Biometrika 1936).
- In service, comparisons with the model. For each s < 1, s ** D * exp((1 - s) * r * E) is a
  supermartingale, and so is its mean over several s: by the inequality of Ville it stays below
  1 / risk for all time, with a probability of 1 - risk. So this bound holds however long outputs
  are compared (a confidence sequence: Howard et al., Annals of Statistics, 2021). It takes the
  place of the first bound once E is REPLACES times as large there.

While E is small, the bound would leave hardly anything to spend. Until it is ENOUGH, doubts are
multiplied by upper(D) / ENOUGH, or by the estimate of r if that is more. Then the budget that is
shown to hold is not the wanted one, but ENOUGH / E times as large: `Audit.smallest_shown`.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from math import ceil, exp, inf, lgamma, log
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_models.trust.gate import (
    ENOUGH,
    Array,
    Calibration,
    DoubtCurve,
    classes_of,
    confidences,
)

RISK: Final = 0.05
"""The probability that more answers differ than the bounds of an audit say."""

SERVICE_RISK: Final = 0.047
"""The part of RISK for evidence from service. Calibration gets the rest: little, so that as many
further queries as calibrated it keep the budget, too, though they vary as well."""

REPLACES: Final = 3.0
"""Evidence from service replaces that from calibration once it is so many times as much."""

LEAST_FACTOR: Final = 0.5
"""The audit's factor is never below this one, however few answers differ."""

CHANGES: Final = (4.0, 2.0, 0.25)
"""The audit forgets its evidence when outputs differ so many times as often as before."""

FALSE_ALARM: Final = 1e-3
"""A change is believed once it explains the comparisons since then 1 / FALSE_ALARM times better."""

EVERY: Final = 32
"""Comparisons without a difference between two updates of the factor."""

FOLDS: Final = 5
"""Folds of the cross-validation that gives a curve its evidence."""

EXPECTED: Final = tuple(2 ** (j / 2) for j in range(-10, 17))
"""Evidence is about outputs of which so many are expected to differ."""

PRECISION: Final = (1e-3, 1e-3, 0.5)
"""The prior precision of the intercept, of the slope, and of its change at the median, per unit of
the confidence's deviation."""

LEAST_DOUBT: Final = 1e-6
"""No output has a lower doubt."""

KNOTS: Final = 24
"""Points at which a curve is stored: quantiles of the confidence."""

_MIXED: Final = tuple(((j + 0.5) / 24) ** 2 for j in range(24))
"""Each s of the mixture (see above)."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@lru_cache(maxsize=4096)
def upper(differed: int) -> float:
    """Return the most differences that were to be expected in service, if `differed` were seen.

    It holds with a probability of 1 - SERVICE_RISK, at all times of a growing count.
    """
    enough = log(len(_MIXED) / SERVICE_RISK)
    return _first(
        lambda most: _log_sum(differed * log(s) + (1 - s) * most for s in _MIXED) >= enough
    )


@lru_cache(maxsize=1024)
def upper_once(differed: int) -> float:
    """Return the most differences that were to be expected, if `differed` were counted once.

    It holds with a probability of 1 - RISK + SERVICE_RISK.
    """
    least = log(RISK - SERVICE_RISK)

    def improbable(most: float) -> bool:
        terms = (i * log(most) - most - lgamma(i + 1) for i in range(differed + 1))
        return _log_sum(terms) <= least

    return _first(improbable)


def _first(holds: Callable[[float], bool]) -> float:
    """Return the number from which on `holds` is true."""
    high = 1.0
    while not holds(high):
        high *= 2
    low = high / 2
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _log_sum(logarithms: Iterable[float]) -> float:
    terms = list(logarithms)
    most = max(terms)
    return most + log(sum(exp(each - most) for each in terms))


def queries_to_show(differ: float) -> int:
    """Return how many calibration queries can show that at most a share `differ` of all answers
    differs."""
    return ceil(ENOUGH / differ)


class Audit:
    """Counts differences against doubts, and corrects the doubts of a curve by a factor.

    Args:
        curve: The curve, with its evidence.
        differ: The share of all answers that may differ from the model's.

    """

    def __init__(self, curve: DoubtCurve, differ: float) -> None:
        self.seen = 0
        """Comparisons in service."""
        self.factor = 1.0
        """The number by which every doubt of the curve is multiplied."""
        self._curve: DoubtCurve | None = curve
        self._differed, self._expected = 0, 0.0  # in service, since the rate last changed
        self._tests = [_ChangeTest(each) for each in CHANGES]
        self.change(differ)

    def change(self, differ: float) -> None:
        """Audit another budget from now on."""
        self._differ = differ
        self._calibrated = (0, 0.0) if self._curve is None else calibrated(self._curve, differ)
        self._update()

    def saw(self, doubt: float, differed: bool) -> None:
        """Add a comparison of an answer that was drawn at random among the stand-in's.

        `doubt` is the curve's, without the factor.
        """
        probability = self._ratio * doubt
        self.seen += 1
        self._differed += differed
        self._expected += doubt
        for test in self._tests:
            if test.saw(probability, doubt, differed):
                # The evidence from before the change no longer counts.
                self._curve, self._calibrated = None, (0, 0.0)
                self._differed, self._expected = test.differed, test.expected
                self._tests = [_ChangeTest(each) for each in CHANGES]
                differed = True
                break
        if differed or self.seen % EVERY == 0:
            self._update()

    def _update(self) -> None:
        differed, expected = self._calibrated
        most, self._total = upper_once(differed), expected
        if self._expected >= REPLACES * expected:
            most, self._total = upper(self._differed), self._expected
        self._most = most / self._total if self._total else inf
        self.factor = max(LEAST_FACTOR, self._ratio, most / max(self._total, ENOUGH))

    @property
    def _ratio(self) -> float:
        """The estimated ratio of the true doubts to the curve's."""
        differed, expected = self._calibrated
        return (differed + self._differed + 1) / (expected + self._expected + 1)

    @property
    def bounds(self) -> tuple[float, float]:
        """The factor by which the curve is probably wrong, and its upper bound (95 %)."""
        return self._ratio, self._most

    @property
    def smallest_shown(self) -> float:
        """The smallest budget that the evidence shows to hold: the wanted one, or a larger one."""
        if not self._total:
            return 1.0 if self._differ else 0.0
        return min(1.0, self._differ * max(1.0, ENOUGH / self._total))

    def share(self, spent: float, queries: int) -> tuple[float, float]:
        """Return the share of all answers that differ, estimated, and its upper bound (95 %).

        `spent` is the sum of the curve's doubts of the stand-in's answers, without the factor,
        while this many `queries` were answered in all.
        """
        if not queries:
            return 0.0, 1.0
        ratio, most = self.bounds
        return min(1.0, ratio * spent / queries), min(1.0, most * spent / queries if spent else 0.0)


class _ChangeTest:
    """Tests whether outputs have begun to differ `change` times as often (CUSUM: Page, Biometrika
    1954), and counts the comparisons since then."""

    __slots__ = ("_change", "_gain", "_log", "differed", "expected")

    def __init__(self, change: float) -> None:
        self._change, self._log = change, log(change)
        self._gain = 0.0
        self.differed, self.expected = 0, 0.0

    def saw(self, probability: float, doubt: float, differed: bool) -> bool:
        """Add a comparison that differs with this probability. Return whether the test is sure."""
        gain = self._gain + (1 - self._change) * probability
        if differed:
            gain += self._log
        if gain <= 0:
            self._gain, self.differed, self.expected = 0.0, 0, 0.0
            return False
        self._gain = gain
        self.differed += differed
        self.expected += doubt
        return gain >= -log(FALSE_ALARM)


def curve_of(calibration: Calibration) -> DoubtCurve:
    """Return the curve of a stand-in.

    Old calibrations have none. For these it has a step at each level of the gate, the share that
    differed between it and the next level; below all levels, doubts are 1.
    """
    if calibration.curve is not None:
        return calibration.curve
    queries, doubt, above, wrong_above = calibration.queries, LEAST_DOUBT, 0.0, 0.0
    steps: list[tuple[float, float]] = []  # descending confidence
    evidence: list[tuple[float, int]] = []
    for level in reversed(calibration.levels):
        threshold = max((each.threshold for each in level.classes), default=level.threshold)
        if steps and threshold >= steps[-1][0]:
            continue
        wrong = level.coverage * (1 - level.agreement)
        band = (wrong - wrong_above) / max(level.coverage - above, 1 / (queries + 1))
        doubt = min(1.0, max(doubt, band, 0.5 / (level.coverage * queries + 1)))
        if steps:
            steps.append((float(np.nextafter(steps[-1][0], -inf)), doubt))
        steps.append((threshold, doubt))
        above, wrong_above = level.coverage, wrong
        if wrong:
            evidence.append((wrong * queries, round(wrong * queries)))
    steps.append((float(np.nextafter(steps[-1][0], -inf)) if steps else 0.0, 1.0))
    at, doubts = zip(*reversed(steps), strict=True)
    return DoubtCurve(at, doubts, queries, tuple(sorted(evidence)))


def doubts_of(calibration: Calibration, outputs: Array) -> Floats:
    """Return the doubt of each of a stand-in's `outputs` (n, *output_shape): (n,); 1 for one that
    is not finite, or is of a class that the stand-in may not answer."""
    found = curve_of(calibration).of(confidences(calibration.confidence, outputs))
    if calibration.answer_only:
        found[~np.isin(classes_of(outputs), list(calibration.allowed))] = 1.0
    return found


def calibrated(curve: DoubtCurve, differ: float) -> tuple[int, float]:
    """Return how many of the outputs that a budget would let through differed in calibration, and
    how many were expected to."""
    if not curve.evidence or not differ:
        return 0, 0.0
    expected, differed = zip(*curve.evidence, strict=True)
    # At least all outputs of the least doubt: they cannot be told apart.
    through = min(max(differ * curve.queries, expected[0]), expected[-1])
    return round(float(np.interp(through, expected, differed))), through


def fit_doubt(confidence: Floats, agreed: Mask, seed: int = 0) -> DoubtCurve:
    """Fit a curve to the confidence in outputs, and whether the model agreed with each: (n,).

    Outputs whose confidence is NaN never answer; they count as queries. The evidence is of FOLDS
    folds, drawn by `seed`, each judged by a curve that is fitted to the others.
    """
    known, queries = np.isfinite(confidence), len(confidence)
    sure, differs = confidence[known], ~agreed[known]
    order, doubts = np.random.default_rng(seed).permutation(len(sure)), np.ones(len(sure))
    for fold in np.array_split(order, FOLDS):
        rest = np.setdiff1d(order, fold)
        doubts[fold] = DoubtCurve(*_fitted(sure[rest], differs[rest])).of(sure[fold])
    curve = _fitted(sure, differs)
    return DoubtCurve(*curve, queries, _evidence(doubts, differs))


def _fitted(sure: Floats, differs: Mask) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return confidences, ascending, and the doubt at each: a logistic regression's.

    The log-odds of differing have a slope below the median confidence, and another above. Doubts
    are their means over the posterior (Laplace's approximation), so the fewer queries there are,
    the slower doubts fall among the most confident outputs. Half an output more that differs, and
    half a one that does not, are spread over all of them.
    """
    if not len(sure):
        return (0.0,), (1.0,)
    found = np.unique(np.quantile(sure, np.linspace(0, 1, KNOTS)).round(4))
    if len(found) < 2:
        return (float(found[0]),), ((float(differs.sum()) + 0.5) / (len(sure) + 1),)
    middle, spread = float(np.median(sure)), float(sure.std())

    def features(confidence: Floats) -> Floats:
        scaled = (confidence - middle) / spread
        return np.stack([np.ones_like(scaled), scaled, np.maximum(scaled, 0)], axis=1)

    rows, precision = features(sure), np.diag(PRECISION)
    wrong = (differs + 0.5 / len(sure)) / (1 + 1 / len(sure))
    weights = np.array([log(wrong.mean() / (1 - wrong.mean())), 0.0, 0.0])
    for _ in range(50):
        said = _sigmoid(rows @ weights)
        curvature = rows.T @ (rows * (said * (1 - said))[:, np.newaxis]) + precision
        step = np.linalg.solve(curvature, rows.T @ (wrong - said) - precision @ weights)
        weights += step * min(1.0, 3 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-6:
            break
    at = features(found)
    deviation = np.sqrt((at * np.linalg.solve(curvature, at.T).T).sum(axis=1))
    points, shares = np.polynomial.hermite_e.hermegauss(15)
    each = _sigmoid((at @ weights)[:, np.newaxis] + deviation[:, np.newaxis] * points)
    doubts = np.minimum.accumulate(each @ (shares / shares.sum()))
    # Their sum is right, whatever the curvature.
    doubts *= wrong.sum() / np.interp(sure, found, doubts).sum()
    return tuple(found.tolist()), tuple(np.clip(doubts, LEAST_DOUBT, 1.0).tolist())


def _sigmoid(log_odds: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-np.clip(log_odds, -40, 40)))
    return found


def _evidence(doubts: Floats, differs: Mask) -> tuple[tuple[float, int], ...]:
    """Return the evidence of a DoubtCurve. Outputs of the same doubt are taken together."""
    if not len(doubts):
        return ()
    order = np.argsort(doubts, kind="stable")
    ranked, wrong = doubts[order], np.cumsum(differs[order])
    expected, found = np.cumsum(ranked), []
    for reached in np.searchsorted(expected, EXPECTED).tolist():
        place = np.searchsorted(ranked, ranked[min(reached, len(ranked) - 1)], side="right") - 1
        found.append((float(f"{expected[place]:.4g}"), int(wrong[place])))
        if place == len(ranked) - 1:
            break
    return tuple(sorted(set(found)))
