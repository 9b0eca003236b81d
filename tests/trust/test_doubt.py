"""Doubts fall with confidence; the audit holds their sum to the truth, and notices a change."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from parity_models.trust.doubt import (
    CHANGES,
    LEARN_FROM,
    LEAST_FACTOR,
    RISK,
    Doubts,
    fit_doubt,
    queries_to_show,
    upper,
    upper_once,
)
from parity_models.trust.evidence import DoubtCurve, Evidence

DOUBT = 0.02
"""The doubt of each answer that is compared."""

PERFECT = DoubtCurve((0.0,), (DOUBT,), 4000, ((4000, 80, 80.0),))
"""Of a stand-in that is exactly as good as its curve says."""

SEVERAL = DoubtCurve((0.0, 1.0, 2.0), (0.5, 0.1, 0.01), 400, ((100, 40, 40.0),) * 3)

confident = st.floats(-20, 20)


def outputs(
    count: int, slope: float, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Draw confidences, and whether the model agrees: less often the lower the confidence."""
    rng = np.random.default_rng(seed)
    sure = rng.normal(3, 2, count)
    return sure, rng.random(count) < 1 / (1 + np.exp(-slope * sure))


# Curves


@given(
    st.lists(st.tuples(confident, st.booleans()), max_size=60),
    st.lists(st.one_of(confident, st.just(np.nan)), min_size=1, max_size=20),
    st.integers(0, 5),
)
def test_doubts_are_probabilities_that_never_rise_with_confidence(
    seen: list[tuple[float, bool]], asked: list[float], seed: int
) -> None:
    sure = np.array([each for each, _ in seen])
    curve = fit_doubt(sure, np.array([agreed for _, agreed in seen], np.bool_), seed)
    at = np.sort(np.array(asked))
    found = curve.of(at)
    assert ((found > 0) & (found <= 1)).all()
    assert (found[np.isnan(at)] == 1).all()
    assert (np.diff(found[~np.isnan(at)]) <= 1e-12).all()
    assert curve.queries == len(seen)
    assert curve.comparisons.total == len(seen)
    assert sum(curve.comparisons.differed) == sum(not agreed for _, agreed in seen)
    assert bool(curve.evidence) == bool(seen)


@pytest.mark.parametrize("slope", [0.3, 1.0, 2.0])
def test_as_many_outputs_differ_as_their_doubts_say(slope: float) -> None:
    curve = fit_doubt(*outputs(5000, slope))
    sure, agreed = outputs(200_000, slope, seed=1)
    doubts = curve.of(sure)
    for low, high in ((0.0, 1.0), (0.0, 0.02), (0.02, 0.2)):
        within = (doubts >= low) & (doubts < high)
        if within.any():
            assert 0.5 < doubts[within].sum() / (~agreed[within]).sum() < 2


def test_without_confidence_the_doubt_is_the_mean_disagreement() -> None:
    curve = fit_doubt(np.zeros(999), np.arange(999) >= 99)
    assert curve.doubts == pytest.approx((0.0995,), rel=0.01)
    assert curve.of(np.array([0.0, np.nan])).tolist() == pytest.approx([0.0995, 1.0], rel=0.01)


def test_without_outputs_everything_is_doubtful() -> None:
    none = np.full(9, np.nan), np.ones(9, np.bool_)
    assert fit_doubt(*none).of(np.array([3.0])).tolist() == [1.0]


@pytest.mark.parametrize(
    "curve",
    [
        '{"confidences":[0,0],"doubts":[1,1]}',
        '{"confidences":[0,1],"doubts":[0.1,0.2]}',
        '{"confidences":[0,1],"doubts":[0.1]}',
        '{"confidences":[0],"doubts":[0]}',
        '{"confidences":[0],"doubts":[0.1],"evidence":[[2,1]]}',
        '{"confidences":[0],"doubts":[0.1],"evidence":[[2,1,1],[1,1,1]]}',
        '{"confidences":[0],"doubts":[0.1],"evidence":[[2,-1,1]]}',
        '{"confidences":[0],"doubts":[0.1],"evidence":[[2,3,1]]}',
    ],
)
def test_curves_that_cannot_be_are_refused(curve: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(curve, type=DoubtCurve)


# Bounds


def test_bounds_hold_with_their_probability() -> None:
    rng = np.random.default_rng(0)
    for expected in (2.0, 8.0, 40.0):
        seen = rng.poisson(expected, 2000)
        missed = np.mean([upper_once(int(each)) < expected for each in seen])
        assert missed <= RISK
        # At every time while the evidence grows.
        steps = rng.poisson(expected / 50, (500, 200)).cumsum(axis=1)
        times = expected / 50 * np.arange(1, 201)
        passed = [
            any(upper(int(n)) < at for n, at in zip(row, times, strict=True)) for row in steps
        ]
        assert np.mean(passed) <= RISK


@given(st.integers(0, 2000))
def test_bounds_rise_with_differences_and_are_above_them(differed: int) -> None:
    for bound in (upper, upper_once):
        assert differed < bound(differed) < bound(differed + 1)


# The audit


@given(
    st.lists(st.tuples(st.floats(-1, 3), st.booleans()), max_size=200),
    st.sampled_from([0.0, 1e-5, 0.01, 0.5, 1.0]),
)
def test_factor_is_the_same_computed_late(seen: list[tuple[float, bool]], differ: float) -> None:
    lazy, eager = Doubts(SEVERAL, differ), Doubts(SEVERAL, differ)
    for confidence, differed in seen:
        lazy.audited(confidence, differed=differed)
        eager.audited(confidence, differed=differed)
        eager.change(differ)  # computes the factor
        assert lazy.factor >= LEAST_FACTOR
    lazy.change(differ)
    assert lazy.factor == eager.factor
    assert lazy.seen == len(seen)
    assert 0 <= lazy.smallest_shown <= 1


@given(st.lists(st.booleans(), min_size=1, max_size=100), st.data())
def test_one_more_difference_never_lowers_the_factor(seen: list[bool], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(seen) - 1))
    worse = [*seen]
    worse[place] = True
    factors = []
    for differs in (seen, worse):
        doubts = Doubts(PERFECT, 0.01)
        doubts._tests = []  # of which another story is told below
        for differed in differs:
            doubts.audited(0.0, differed=differed)
        doubts.change(0.01)
        factors.append(doubts.factor)
    assert factors[0] <= factors[1]


def audit(doubts: Doubts, differ: NDArray[np.bool_]) -> None:
    for differed in differ.tolist():
        doubts.audited(0.0, differed=differed)


@pytest.mark.parametrize("before", [0, 1000, 100_000])
@pytest.mark.parametrize("times", [5, 10])
def test_a_change_is_noticed_within_1000_answers(before: int, times: int) -> None:
    rng = np.random.default_rng(before + times)
    doubts = Doubts(PERFECT, 0.01)
    audit(doubts, rng.random(before) < DOUBT)
    good = doubts.factor
    audit(doubts, rng.random(1000) < times * DOUBT)
    assert doubts.factor > max(2 * good, 0.7 * times)


def test_a_stand_in_that_is_always_wrong_is_found_out_at_once_and_stays_so() -> None:
    """Evidence from before the change is forgotten; the factor it has shown is not."""
    doubts = Doubts(PERFECT, 0.01)
    doubts.compared(0.0, differed=False)
    for _ in range(4):
        doubts.audited(0.0, differed=True)
    assert doubts.factor > max(CHANGES) / 2
    assert not doubts.own.total
    at_first = doubts.factor
    audit(doubts, np.ones(20, np.bool_))
    assert doubts.of(np.array([0.0])) == 1
    assert doubts.factor >= at_first / 2


def test_a_good_stand_in_is_forgiven_after_a_bad_time() -> None:
    rng = np.random.default_rng(0)
    doubts = Doubts(PERFECT, 0.01)
    for chance, factor in ((10 * DOUBT, 5.0), (DOUBT, 3.0)):
        audit(doubts, rng.random(5000) < chance)
        assert (doubts.factor > factor) == (chance > DOUBT)


def test_the_number_that_differs_is_estimated_and_bounded() -> None:
    doubts = Doubts(PERFECT, 0.01)
    assert doubts.differing == (0.0, 0.0)
    for _ in range(1000):
        doubts.answered(float(doubts.of(np.array([0.0]))[0]))
    estimate, most = doubts.differing
    assert estimate == pytest.approx(1000 * DOUBT, rel=0.02)
    assert estimate < most < 2 * estimate
    doubts.change(0.02)
    assert doubts.differing == (0.0, 0.0)


# Learning


def learned(
    doubts: Doubts, count: int, slope: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    sure, agreed = outputs(count, slope, seed=7)
    for confidence, agrees in zip(sure.tolist(), agreed.tolist(), strict=True):
        doubts.compared(confidence, differed=not agrees)
    return sure, agreed


def test_comparisons_bring_the_doubts_near_the_truth_and_show_small_budgets() -> None:
    doubts = Doubts(fit_doubt(*outputs(100, 1.0)), 1e-3)
    for _ in range(10):
        doubts.answered(0.01)
    assert doubts.smallest_shown > 1e-3
    spent = doubts.differing
    learned(doubts, 20_000)
    assert doubts.smallest_shown == 1e-3
    assert 0 < doubts.differing[0] <= spent[1], "what was answered is settled by the curve of then"
    sure, agreed = outputs(200_000, 1.0, seed=9)
    found = doubts.of(sure)
    order = np.argsort(found)
    through = order[np.cumsum(found[order]) <= 1e-3 * len(sure)]
    assert 0.4e-3 < (~agreed[through]).sum() / len(sure) <= 1e-3
    assert queries_to_show(1e-3) == 5000


def test_earlier_and_other_servers_evidence_counts() -> None:
    curve = fit_doubt(*outputs(100, 1.0))
    first = Doubts(curve, 1e-3)
    learned(first, 6000, 2.0)
    later = Doubts(curve, 1e-3, None, first.own)
    with_others = Doubts(curve, 1e-3, first.own)
    assert later.own is first.own
    assert with_others.own.total == 0
    at = np.linspace(-4, 8, 20)
    np.testing.assert_allclose(later.of(at), with_others.of(at))
    np.testing.assert_allclose(later.of(at), first.of(at), rtol=0.5)
    assert later.smallest_shown == first.smallest_shown


@given(
    st.lists(
        st.tuples(st.sampled_from(["audited", "compared", "answered"]), confident, st.booleans()),
        max_size=300,
    ),
    st.integers(0, 1200),
)
def test_doubts_are_always_probabilities(seen: list[tuple[str, float, bool]], before: int) -> None:
    known = Evidence(SEVERAL.confidences, [before] * 3, [before // 2] * 3, [before / 3] * 3)
    doubts = Doubts(SEVERAL, 0.01, known)
    at = np.array([-99.0, 0.5, 1.5, 99.0, np.nan])
    for what, confidence, differed in seen:
        if what == "answered":
            doubts.answered(float(doubts.of(np.array([confidence]))[0]))
        else:
            getattr(doubts, what)(confidence, differed=differed)
        found = doubts.of(at)
        assert ((found > 0) & (found <= 1)).all()
        assert (np.diff(found[:4]) <= 1e-12).all()
        assert found[4] == 1
        estimate, most = doubts.differing
        assert 0 <= estimate <= most or estimate == pytest.approx(most)


def test_nothing_is_learned_from_a_few_comparisons() -> None:
    doubts = Doubts(SEVERAL, 0.01)
    at = np.linspace(0, 2, 9)
    curve = doubts.of(at) / doubts.factor
    learned(doubts, LEARN_FROM - SEVERAL.comparisons.total - 1)
    np.testing.assert_allclose(doubts.of(at) / doubts.factor, curve)
