"""Calibrating gates: how confident a stand-in must be to agree with F often enough.

Thresholds are tested on held-out queries (Angelopoulos, Bates et al., Learn then Test, 2021). The
hypothesis for a threshold is that the outputs above it agree less often than the level. Its p-value
is binomial; for a single threshold, this is the bound of Clopper and Pearson (Biometrika, 1934).
Thresholds of a level are tested one after the other, towards more coverage, until a hypothesis is
not rejected; the threshold before it is taken. In this way, many thresholds need no more risk than
one (fixed sequence testing). The levels share RISK, so that a choice among them by coverage is
wrong with at most that probability; a level at which every output may answer passes its share on to
the next one (Bretz et al., Statistics in Medicine, 2009). Thresholds are quantiles of the
confidence in queries other than those that test them.
"""

from collections.abc import Collection, Iterable, Sequence
from math import log, sqrt
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.tasks.metrics import agreement_for
from parity_models.trust.agreement import LEARNED_RISK
from parity_models.trust.gate import (
    EVERYTHING,
    LEAST_LEVEL,
    NOTHING,
    AnsweredClass,
    Array,
    GateLevel,
    classes_of,
    confidences,
    served,
    suited,
)

LEVELS: Final = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
"""The levels of agreement that are always calibrated, if they can be reached."""

RISK: Final = 0.05 - LEARNED_RISK
"""The maximum probability that a stand-in's true agreement is below any of its levels."""

NAMED: Final = 0.9
"""The share of the risk for levels that the user names; the other levels share the rest."""

DESIGN: Final = 10
"""One query in DESIGN chooses the thresholds; the others test them."""

THRESHOLDS: Final = 200
"""Maximum number of thresholds that are tested."""

FIRST: Final = 6.0
"""The first threshold lets FIRST times as many answers through as would be enough if all of them
agreed: some of the most confident disagree, too."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def reached_by_class(
    confidence: Floats,
    agreed: Mask,
    said: NDArray[np.int64],
    allowed: Sequence[AnsweredClass],
    *,
    named: Collection[float] = (),
    seed: int = 0,
    risk: float = RISK,
) -> list[GateLevel]:
    """Return the one-sided gates, ascending, of the levels that at least one class reaches.

    `said` (n,) are the classes of the answers. Each class is calibrated by its own answers, at its
    share of the `risk` (Bonferroni). At each level it gets its lowest gate that reaches both that
    level and its own; a class without such a gate is not answered.
    """
    shown: dict[int, list[GateLevel]] = {}
    for each in allowed:
        wanted = {max(level, each.level) for level in named or (each.level,)} - {0.0}
        mine, share = said == each.number, risk / len(allowed)
        shown[each.number] = reached_levels(
            confidence[mine], agreed[mine], named=wanted, seed=seed, risk=share
        )
    gates = []
    for level in sorted({*LEVELS, *named}):
        classes = []
        for each in allowed:
            least, mine = max(level, each.level), said == each.number
            gate = next((one for one in shown[each.number] if one.level >= least), None)
            if gate is not None:
                part = gate.coverage * float(mine.mean())
                classes.append(msgspec.structs.replace(gate, coverage=part, number=each.number))
        covered = sum(each.coverage for each in classes)
        if covered:
            right = sum(each.coverage * each.agreement for each in classes) / covered
            gates.append(GateLevel(level, NOTHING, covered, min(1.0, right), tuple(classes)))
    return gates


def estimate_coverage(
    outputs: Array,
    predictions: Array,
    metric: str,
    level: float,
    allowed: Sequence[AnsweredClass] = (),
) -> float:
    """Estimate the share of queries that a stand-in may answer if `level` of its answers must agree
    with F's `predictions`.

    `outputs` are (n, *output_shape), or rows if it has a head. The estimate is the largest share of
    the most confident answers that reaches the level, class by class for one-sided gates; without a
    confidence, the share that agree. Only calibration guarantees the level."""
    agreement = agreement_for(metric, predictions)
    agreed, confidence = agreement(served(outputs), predictions), suited(agreement.kind, outputs)
    if confidence == "none":
        return float(agreed.mean())
    sure = confidences(confidence, outputs)
    if not allowed:
        return surest_share(sure, agreed, level)
    sides = [(classes_of(outputs) == each.number, max(level, each.level)) for each in allowed]
    parts = (mine.mean() * surest_share(sure[mine], agreed[mine], to) for mine, to in sides)
    return float(sum(parts))


def surest_share(confidence: Floats, agreed: Mask, level: float) -> float:
    """Return the largest share of answers (n,), the surest first, that agrees at `level`."""
    order = np.argsort(-confidence, kind="stable")
    right = np.cumsum(agreed[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(right >= level)
    return float((enough[-1] + 1) / len(order)) if len(enough) else 0.0


def reached_levels(
    confidence: Floats,
    agreed: Mask,
    *,
    named: Collection[float] = (),
    seed: int = 0,
    risk: float = RISK,
) -> list[GateLevel]:
    """Return the gates of the levels that were shown, ascending; see `learn_threshold`.

    The probability that any gate fails its level is at most `risk`.
    """
    others = set(LEVELS) - set(named)
    weight = NAMED if named else 0.0
    shares = {level: weight / len(named) for level in named}
    shares |= {level: (1 - weight) / len(others) for level in others}
    reached, left = [], 0.0
    for level, share in sorted(shares.items()):
        left += share * risk
        gate = learn_threshold(confidence, agreed, level, seed, left, share * risk)
        if gate is not None:
            reached.append(gate)
        if gate is None or gate.threshold > EVERYTHING:
            left = 0.0
    return reached


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


def learn_threshold(
    confidence: Floats,
    agreed: Mask,
    level: float,
    seed: int = 0,
    risk: float = RISK,
    least_risk: float | None = None,
) -> GateLevel | None:
    """Return the threshold with the most coverage that was shown to keep `level`, or None.

    The probability that it does not is at most `risk`. `confidence` and `agreed` (n,) are of
    independent answers: one in DESIGN, drawn by `seed`, sets the thresholds; the others test them.
    The first threshold is chosen for `least_risk`, by default `risk`, which must not depend on
    these answers.
    """
    order = np.random.default_rng(seed).permutation(len(confidence))
    design, test = np.split(order, [len(order) // DESIGN])
    if not len(design):
        return None
    chosen = None
    for threshold in _sequence(confidence[design], level, len(test), least_risk or risk):
        given = confidence[test] >= threshold
        number, right = int(given.sum()), int((given & agreed[test]).sum())
        if p_value(number - right, number, level) > risk:
            break
        chosen = GateLevel(level, threshold, number / len(test), right / number)
    return chosen


def _sequence(confidence: Floats, level: float, tested: int, risk: float) -> list[float]:
    """Return thresholds of ever more coverage for `tested` answers: quantiles of the `confidence`
    of other answers, and one that lets everything through."""
    finite = confidence[np.isfinite(confidence)]
    if not len(finite):
        return []
    quantiles = np.quantile(finite, np.linspace(0, 1, THRESHOLDS), method="lower")
    thresholds: list[float] = [*np.unique(quantiles)[::-1].tolist(), EVERYTHING]
    enough = log(risk) / log(level)
    first = min(FIRST * enough, sqrt(enough * tested), tested)
    covered = [(confidence >= threshold).mean() for threshold in thresholds]
    return [
        each for each, share in zip(thresholds, covered, strict=True) if share * tested >= first
    ]


def p_value(disagreed: int, given: int, level: float) -> float:
    """Return the probability that at most `disagreed` of `given` answers disagree if `level` of all
    agree; 1 if more disagree than expected."""
    if disagreed >= given * (1 - level) + 1 or not given:
        return 1.0
    i = np.arange(1, disagreed + 1)
    ratios = np.log((given - i + 1) / i) + log((1 - level) / level)
    terms = given * log(level) + np.concatenate([[0.0], np.cumsum(ratios)])
    return float(min(1.0, np.exp(np.logaddexp.reduce(terms))))
