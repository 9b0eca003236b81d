"""Doubt: the probability that a stand-in's output differs from the model's, and its audit.

A curve gives each output's doubt by its confidence. It is fitted to the queries of calibration and,
anew now and then, to all outputs that were compared with the model in service. The truth may be r
times the curve. So an audit counts how many outputs differed, D, and how many were expected to, E,
and bounds r from above by upper(D) / E. Every doubt is multiplied by that bound, so the budget
holds with a probability of 1 - RISK. There are two kinds of evidence, which share RISK.

- Outputs to all kinds of queries, in calibration and in service: of these, the ones that the budget
  would let through, each judged by a curve that it was not fitted to. The bound is the exact one of
  a Poisson variable (Garwood, Biometrika 1936). It is for evidence that is counted once; as this
  grows, its risk is approximate.
- Answers of the stand-in, drawn at random. For each s < 1, s ** D * exp((1 - s) * r * E) is a
  supermartingale, and so is its mean over several s: by the inequality of Ville it stays below
  1 / risk for all time, with a probability of 1 - risk. So this bound holds however long answers
  are compared (a confidence sequence: Howard et al., Annals of Statistics, 2021). It takes the
  place of the first bound once E is REPLACES times as large there.

While E is small, the bound would leave hardly anything to spend. Until it is ENOUGH, doubts are
multiplied by upper(D) / ENOUGH, or by the estimate of r if that is more. Then the budget that is
shown to hold is not the wanted one, but ENOUGH / E times as large: `Doubts.smallest_shown`.
"""

from collections.abc import Callable
from functools import lru_cache
from math import ceil, inf, lgamma, log, sqrt
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parity_models.trust.evidence import ENOUGH, DoubtCurve, Evidence

RISK: Final = 0.05
"""The probability that more answers differ than the bounds of an audit say."""

SERVICE_RISK: Final = 0.048
"""The part of RISK for evidence from service. Calibration gets the rest: little, so that as many
further queries as calibrated it keep the budget, too, though they vary as well."""

REPLACES: Final = 3.0
"""Evidence from service replaces that from calibration once it is so many times as much."""

LEAST_FACTOR: Final = 0.5
"""The audit's factor is never below this one, however few answers differ."""

CHANGES: Final = (16.0, 4.0, 2.0, 0.25)
"""Evidence is forgotten when answers differ so many times as often as before."""

LEARN_FROM: Final = 500
"""A curve is not fitted to fewer comparisons in service."""

REFIT: Final = 1.25
"""A curve is fitted anew when there are so many times as many comparisons."""

FALSE_ALARM: Final = 1e-3
"""A change is believed once it explains the comparisons since then 1 / FALSE_ALARM times better."""

EVERY: Final = 32
"""Comparisons without a difference between two updates of the factor."""

MANY: Final = 1000
"""Of so many differences, the exact bound would take too long, and tells no more."""

FOLDS: Final = 5
"""Folds of the cross-validation that gives a curve its evidence."""

PRECISION: Final = (1e-3, 1e-3, 0.5)
"""The prior precision of the intercept, of the slope, and of its change at the median, per unit of
the confidence's deviation."""

STRENGTH: Final = 4.0
"""A regression's say in a curve, in expected differences."""

LEAST_DOUBT: Final = 1e-6
"""No output has a lower doubt."""

KNOTS: Final = 40
"""Bins of a curve: they begin at quantiles of the confidence."""

_MIXED: Final = ((np.arange(24) + 0.5) / 24) ** 2
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
        lambda most: np.logaddexp.reduce(differed * np.log(_MIXED) + (1 - _MIXED) * most) >= enough
    )


@lru_cache(maxsize=1024)
def upper_once(differed: int) -> float:
    """Return the most differences that were to be expected, if `differed` were counted once.

    It holds with a probability of 1 - RISK + SERVICE_RISK.
    """
    if differed >= MANY:  # Wilson and Hilferty, PNAS 1931
        count, normal = differed + 1, NormalDist().inv_cdf(1 - RISK + SERVICE_RISK)
        return float(count * (1 - 1 / (9 * count) + normal / (3 * sqrt(count))) ** 3)
    least, i = log(RISK - SERVICE_RISK), np.arange(differed + 1)
    factorials = np.array([lgamma(each + 1) for each in i])
    return _first(lambda most: np.logaddexp.reduce(i * log(most) - most - factorials) <= least)


def _first(holds: Callable[[float], np.bool_]) -> float:
    """Return the number from which on `holds` is true."""
    high = 1.0
    while not holds(high):
        high *= 2
    low = high / 2
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def queries_to_show(differ: float) -> int:
    """Return how many calibration queries can show that at most a share `differ` of all answers
    differs."""
    return ceil(ENOUGH / differ)


class Doubts:
    """The doubts of a stand-in's outputs, which learn from comparisons with the model.

    Args:
        curve: The calibrated curve, with its evidence.
        differ: The share of all answers that may differ from the model's.
        known: Comparisons of other servers.
        own: This server's comparisons, which is kept up to date.

    """

    def __init__(
        self,
        curve: DoubtCurve,
        differ: float,
        known: Evidence | None = None,
        own: Evidence | None = None,
    ) -> None:
        self.seen = 0
        """Answers that were compared."""
        self.factor = 1.0
        """The number by which every doubt of the curve is multiplied."""
        self.own = Evidence(curve.confidences) if own is None else own
        """Its own comparisons of outputs to all kinds of queries."""
        self._differ = differ
        self._evidence = curve.comparisons
        self._evidence += self.own
        if known is not None:
            self._evidence += known
        self._answers = Evidence(curve.confidences)
        """The compared answers since the rate of differences last changed."""
        self._base = 1.0
        """The ratio of the true doubts to the curve's, as far as older answers tell."""
        self._spent, self._settled = 0.0, (0.0, 0.0)
        self._tests: list[_ChangeTest] = []
        self._known: tuple[int, float] = 0, 0.0
        self._fit_at = 0.0
        total = self._evidence.total
        learned = total > curve.comparisons.total and (total >= LEARN_FROM or not curve.queries)
        self._use(fitted(self._evidence) if learned else curve)

    def of(self, confidence: Floats) -> Floats:
        """Return the doubts of outputs with this confidence (n,): (n,), 1 where it is NaN."""
        return self._curve.of(confidence, self.factor)

    def change(self, differ: float) -> None:
        """Audit another budget from now on, and count answers anew."""
        self._differ = differ
        self._spent, self._settled = 0.0, (0.0, 0.0)
        self._update()

    def answered(self, doubt: float) -> None:
        """Count an answer, whose doubt `of` has returned."""
        self._spent += doubt / self.factor

    def compared(self, confidence: float, *, differed: bool) -> None:
        """Add a comparison of an output to a query that was drawn at random among all."""
        doubt = self._curve.of_one(confidence)
        for evidence in (self._evidence, self.own):
            evidence.add(confidence, differed=differed, doubt=doubt)
        if self._evidence.total >= self._fit_at:
            self._settled, self._spent = self.differing, 0.0
            self._use(fitted(self._evidence))

    def audited(self, confidence: float, *, differed: bool) -> bool:
        """Add a comparison of an answer that was drawn at random among the stand-in's. Return
        whether answers have begun to differ more or less often, so that evidence is forgotten."""
        doubt = self._curve.of_one(confidence)
        probability = self._ratio * doubt
        self.seen += 1
        self._answers.add(confidence, differed=differed, doubt=doubt)
        changed = next((x for x in self._tests if x.saw(probability, differed=differed)), None)
        if changed is not None:
            # The evidence from before the change no longer counts.
            self._base = self._ratio * changed.change
            for evidence in (self._answers, self._evidence, self.own):
                evidence.clear()
            self._fit_at = LEARN_FROM
            self._tests = [_ChangeTest(each) for each in CHANGES]
        if differed or changed or self.seen % EVERY == 0:
            self._update()
        return changed is not None

    @property
    def curve(self) -> DoubtCurve:
        """The curve, multiplied by what older answers have shown, without evidence."""
        curve = self._curve
        doubts = curve.of(np.array(self._evidence.middles), self._base).tolist()
        return DoubtCurve(curve.confidences, tuple(doubts), max(1, curve.queries))

    def _use(self, curve: DoubtCurve) -> None:
        """Judge outputs by this curve from now on."""
        self._curve, answers = curve, self._answers
        before = sum(answers.expected)
        answers.expected = np.multiply(answers.compared, curve.of(answers.middles)).tolist()
        if before:
            self._base = max(1.0, self._base * before / sum(answers.expected))
        self._fit_at = max(LEARN_FROM, REFIT * self._evidence.total)
        self._tests = [_ChangeTest(each) for each in CHANGES]
        self._update()

    def _update(self) -> None:
        self._known = self._let_through()
        differed, total = self._known
        most = upper_once(differed)
        if sum(self._answers.expected) >= REPLACES * total:
            most, total = upper(sum(self._answers.differed)), sum(self._answers.expected)
        self._most = most / total if total else inf
        self._total = self._base * total
        self.factor = max(LEAST_FACTOR, self._ratio, self._base * most / max(self._total, ENOUGH))

    def _let_through(self) -> tuple[int, float]:
        """Return how many of the compared outputs that the budget would let through differed, and
        how many were expected to."""
        total = self._evidence.total
        if not (total and self._differ):
            return 0, 0.0
        _, differed, expected = self._evidence.above
        # At least the first bin: its outputs cannot be told apart.
        through = min(max(self._differ * total, expected[0]), expected[-1])
        return round(float(np.interp(through, expected, differed))), float(through)

    @property
    def _ratio(self) -> float:
        """The estimated ratio of the true doubts to the curve's."""
        differed = self._known[0] + sum(self._answers.differed)
        expected = self._known[1] + sum(self._answers.expected)
        return self._base * (differed + 1) / (self._base * expected + 1)

    @property
    def smallest_shown(self) -> float:
        """The smallest budget that the evidence shows to hold: the wanted one, or a larger one."""
        if not self._total:
            return 1.0 if self._differ else 0.0
        return min(1.0, self._differ * max(1.0, ENOUGH / self._total))

    @property
    def differing(self) -> tuple[float, float]:
        """How many answers differ since the budget last changed, estimated, and an upper bound
        (95 %)."""
        known, most = self._settled
        if not self._spent:
            return known, most
        return known + self._ratio * self._spent, most + self._most * self._spent


class _ChangeTest:
    """Tests whether answers have begun to differ `change` times as often (CUSUM: Page, Biometrika
    1954)."""

    __slots__ = ("_gain", "_log", "change")

    def __init__(self, change: float) -> None:
        self.change, self._log = change, log(change)
        self._gain = 0.0

    def saw(self, probability: float, *, differed: bool) -> bool:
        """Add a comparison that differs with this probability. Return whether the test is sure."""
        gain = self._gain + (1 - self.change) * probability + (self._log if differed else 0.0)
        self._gain = max(0.0, gain)
        return gain >= -log(FALSE_ALARM)


def fit_doubt(confidence: Floats, agreed: Mask, seed: int = 0) -> DoubtCurve:
    """Fit a curve to the confidence in outputs, and whether the model agreed with each: (n,).

    Outputs whose confidence is NaN never answer; they count as queries. The evidence is of FOLDS
    folds, drawn by `seed`, each judged by a curve that is fitted to the others.
    """
    known = np.isfinite(confidence)
    sure, differs = confidence[known], ~agreed[known]
    if not len(sure):
        return DoubtCurve((0.0,), (1.0,), len(confidence))
    # There are about as many outputs between two thresholds as between any others.
    thresholds = tuple(np.unique(np.quantile(sure, np.linspace(0, 1, KNOTS)).round(4)).tolist())
    at, everything = np.searchsorted(thresholds[1:], sure, side="right"), np.arange(len(sure))

    def counted(rows: NDArray[np.intp]) -> Evidence:
        columns = (at[rows], at[rows][differs[rows]])
        counts = [np.bincount(each, minlength=len(thresholds)).tolist() for each in columns]
        return Evidence(thresholds, *counts)

    doubts = np.empty(len(sure))
    for fold in np.array_split(np.random.default_rng(seed).permutation(everything), FOLDS):
        curve = fitted(counted(np.setdiff1d(everything, fold)))
        doubts[fold] = curve.of(sure[fold])
    evidence = counted(everything)
    expected = np.bincount(at, doubts, len(thresholds)).tolist()
    counts = zip(evidence.compared, evidence.differed, expected, strict=True)
    return DoubtCurve(thresholds, fitted(evidence).doubts, len(confidence), tuple(counts))


def fitted(evidence: Evidence) -> DoubtCurve:
    """Fit a curve to compared outputs.

    The number that differ among the surest outputs, up to more and more of them, is estimated as
    what a logistic regression expects, times what was counted, relative to that; both have
    STRENGTH differences added. So the regression decides where few are expected, and counts where
    there are many. The doubts are the slopes of the greatest convex function below these numbers,
    so they never rise with confidence (isotonic regression does the same with counts alone).
    """
    count, differed = (np.array(each, float) for each in (evidence.compared, evidence.differed))
    regressed = _regressed(np.array(evidence.middles), count, differed)
    pools: list[list[float]] = []  # differences, outputs, bins; the surest first
    expected = counted = before = 0.0
    for n, d, doubt in zip(count[::-1], differed[::-1], regressed[::-1], strict=True):
        expected, counted = expected + n * doubt, counted + d
        estimate = expected * (counted + STRENGTH) / (expected + STRENGTH)
        pools.append([estimate - before, n, 1])
        before = estimate
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] >= pools[-1][0] * pools[-2][1]:
            last = pools.pop()
            pools[-1] = [one + other for one, other in zip(pools[-1], last, strict=True)]
    if not before:
        return DoubtCurve(evidence.thresholds, tuple(regressed.tolist()), evidence.total)
    slopes = np.concatenate([np.full(int(bins), d / n) for d, n, bins in pools])[::-1]
    doubts = np.clip(slopes, LEAST_DOUBT, 1.0)
    return DoubtCurve(evidence.thresholds, tuple(doubts.tolist()), evidence.total)


def _regressed(sure: Floats, count: Floats, differed: Floats) -> Floats:
    """Return the doubts of outputs by logistic regression: (n,).

    Args:
        sure: Confidences, ascending: (n,).
        count: How many outputs have each: (n,).
        differed: How many of these differed: (n,).

    The log-odds of differing have a slope below the median confidence, and another above. Doubts
    are their means over the posterior (Laplace's approximation), so the fewer queries there are,
    the slower doubts fall among the most confident outputs. Half an output more that differs, and
    half a one that does not, are spread over all of them.
    """
    total = float(count.sum())
    wrong = (differed + 0.5 * count / max(total, 0.5)) / (1 + 1 / max(total, 0.5))
    share = float(wrong.sum()) / total if total else 1.0
    if len(sure) < 2 or not total:
        return np.full(len(sure), share)
    middle = float(sure[np.searchsorted(np.cumsum(count), total / 2)])
    spread = float(np.sqrt(count @ (sure - count @ sure / total) ** 2 / total)) or 1.0

    def features(confidence: Floats) -> Floats:
        scaled = (confidence - middle) / spread
        return np.stack([np.ones_like(scaled), scaled, np.maximum(scaled, 0)], axis=1)

    rows, precision = features(sure), np.diag(PRECISION)
    weights = np.array([log(share / (1 - share)), 0.0, 0.0])
    for _ in range(50):
        said = _sigmoid(rows @ weights)
        curvature = rows.T @ (rows * (count * said * (1 - said))[:, np.newaxis]) + precision
        step = np.linalg.solve(curvature, rows.T @ (wrong - count * said) - precision @ weights)
        weights += step * min(1.0, 3 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-6:
            break
    deviation = np.sqrt((rows * np.linalg.solve(curvature, rows.T).T).sum(axis=1))
    points, shares = np.polynomial.hermite_e.hermegauss(15)
    each = _sigmoid((rows @ weights)[:, np.newaxis] + deviation[:, np.newaxis] * points)
    doubts = np.minimum.accumulate(each @ (shares / shares.sum()))
    # Their sum is right, whatever the curvature.
    doubts *= wrong.sum() / (count @ doubts)
    return np.clip(doubts, LEAST_DOUBT, 1.0)


def _sigmoid(log_odds: Floats) -> Floats:
    found: Floats = 1 / (1 + np.exp(-np.clip(log_odds, -40, 40)))
    return found
