"""Doubts fall with confidence; the audit holds their sum to the truth, and notices a change."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from linear_bundles import CLASSES, FEATURES, linear_bundle
from parity_models.bundle.bundle import open_bundle, with_measured
from parity_models.evaluation.judging import calibrate_gates
from parity_models.evaluation.outputs import Outputs
from parity_models.trust import doubt as doubting
from parity_models.trust.doubt import (
    LEAST_FACTOR,
    RISK,
    Audit,
    curve_of,
    doubts_of,
    fit_doubt,
    queries_to_show,
    upper,
    upper_once,
)
from parity_models.trust.gate import (
    ENOUGH,
    NOTHING,
    AnsweredClass,
    Calibration,
    ClassLevel,
    DoubtCurve,
    GateLevel,
    classes_of,
)

DOUBT = 0.02
"""The doubt of each answer that is compared."""

PERFECT = DoubtCurve((0.0,), (DOUBT,), 4000, tuple((2.0**n, 2**n) for n in range(7)))
"""Of a stand-in that is exactly as good as its curve says."""

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
    expected = [each for each, _ in curve.evidence]
    assert expected == sorted(expected)
    assert curve.queries == len(seen)


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
    assert curve.doubts == (0.0995,)
    assert curve.of(np.array([0.0, np.nan])).tolist() == pytest.approx([0.0995, 1.0])


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
        '{"confidences":[0],"doubts":[0.1],"evidence":[[2,1],[1,1]]}',
        '{"confidences":[0],"doubts":[0.1],"evidence":[[2,-1]]}',
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


@given(st.lists(st.tuples(st.floats(1e-6, 1), st.booleans()), max_size=200), st.floats(1e-5, 0.5))
def test_the_factor_has_a_floor_and_comes_to_the_same_if_computed_late(
    seen: list[tuple[float, bool]], differ: float
) -> None:
    lazy, eager = Audit(PERFECT, differ), Audit(PERFECT, differ)
    for doubt, differed in seen:
        lazy.saw(doubt, differed)
        eager.saw(doubt, differed)
        eager.change(differ)  # computes the factor
        assert lazy.factor >= LEAST_FACTOR
    lazy.change(differ)
    assert lazy.factor == eager.factor
    assert lazy.seen == len(seen)


@given(st.lists(st.booleans(), min_size=1, max_size=100), st.data())
def test_one_more_difference_never_lowers_the_factor(seen: list[bool], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(seen) - 1))
    worse = [*seen]
    worse[place] = True
    factors = []
    for differs in (seen, worse):
        audit = Audit(PERFECT, 0.01)
        audit._tests = []  # of which another story is told below
        for differed in differs:
            audit.saw(DOUBT, differed)
        audit.change(0.01)
        factors.append(audit.factor)
    assert factors[0] <= factors[1]


@pytest.mark.parametrize("before", [0, 1000, 100_000])
@pytest.mark.parametrize("times", [5, 10])
def test_a_change_is_noticed_within_1000_comparisons(before: int, times: int) -> None:
    rng = np.random.default_rng(before + times)
    audit = Audit(PERFECT, 0.01)
    for differed in (rng.random(before) < DOUBT).tolist():
        audit.saw(DOUBT, differed)
    good = audit.factor
    for differed in (rng.random(1000) < times * DOUBT).tolist():
        audit.saw(DOUBT, differed)
    assert audit.factor > max(2 * good, 0.7 * times)


def test_a_good_stand_in_is_forgiven_after_a_bad_time() -> None:
    rng = np.random.default_rng(0)
    audit = Audit(PERFECT, 0.01)
    for chance, factor in ((10 * DOUBT, 5.0), (DOUBT, 3.0)):
        for differed in (rng.random(5000) < chance).tolist():
            audit.saw(DOUBT, differed)
        assert (audit.factor > factor) == (chance > DOUBT)


def test_evidence_from_service_makes_small_budgets_shown() -> None:
    audit = Audit(PERFECT, 1e-4)
    assert audit.smallest_shown == pytest.approx(ENOUGH / 4000 * 0.4 / 2, rel=1.5)
    for _ in range(1000):
        audit.saw(DOUBT, False)
    assert audit.smallest_shown == 1e-4
    assert audit.factor < 1
    assert queries_to_show(1e-3) == 5000


def test_the_share_that_differs_is_estimated_and_bounded() -> None:
    audit = Audit(PERFECT, 0.01)
    estimate, most = audit.share(50.0, 10_000)
    assert estimate == pytest.approx(0.005, rel=0.1)
    assert estimate < most < 2 * estimate
    assert audit.share(0.0, 0) == (0.0, 1.0)
    assert audit.share(0.0, 10) == (0.0, 0.0)
    assert Audit(DoubtCurve((0.0,), (0.5,)), 0.01).share(1.0, 10)[1] == 1.0


def test_budgets_of_nothing_and_everything_are_audited_too() -> None:
    for differ in (0.0, 1.0):
        audit = Audit(PERFECT, differ)
        audit.saw(DOUBT, True)
        assert audit.factor >= LEAST_FACTOR
        assert 0 <= audit.smallest_shown <= 1


# Calibrations


def test_calibration_gives_a_curve_which_the_bundle_keeps(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    noisy = weights + 0.3 * rng.normal(size=weights.shape).astype(np.float32)
    bundle = linear_bundle(tmp_path, weights, backup=noisy)
    rows = rng.normal(size=(2000, FEATURES)).astype(np.float32)
    outputs = Outputs(bundle, rows)
    gates = calibrate_gates(outputs)
    curve = gates["backup"].curve
    assert curve is not None
    assert curve.queries == 2000
    with_measured(bundle, calibration=gates)
    assert open_bundle(bundle.path).manifest.calibration == gates
    assert f"from {curve.smallest_shown:.2%}" in str(open_bundle(bundle.path).gates)

    found = outputs.answers()["backup"].gave
    one_sided = calibrate_gates(outputs, allowed=[AnsweredClass(0, "0")])["backup"]
    doubts = doubts_of(one_sided, found)
    assert (doubts[classes_of(found) != 0] == 1).all()
    assert (doubts[classes_of(found) == 0] < 1).any()


def test_old_calibrations_have_the_doubts_of_their_levels() -> None:
    levels = (
        GateLevel(0.9, -1e9, 1.0, 0.92),
        GateLevel(0.95, 1.0, 0.8, 0.96),
        GateLevel(0.99, 3.0, 0.5, 0.996),
    )
    old = Calibration("classes", 0.0, "scores", 1000, 0.05, levels)
    found = curve_of(msgspec.json.decode(msgspec.json.encode(old), type=Calibration))
    doubts = found.of(np.array([-5.0, 1.0, 2.9, 3.0, 50.0, np.nan]))
    assert doubts.tolist() == pytest.approx([0.24, 0.1, 0.1, 0.004, 0.004, 1.0])
    assert Audit(found, 0.01).factor >= LEAST_FACTOR

    some = (ClassLevel(0.9, 2.0, 0.3, 0.98, number=1),)
    one_sided = Calibration(
        "classes",
        0.0,
        "scores",
        1000,
        0.05,
        (GateLevel(0.9, NOTHING, 0.3, 0.98, some),),
        (AnsweredClass(1, "spam"),),
    )
    assert curve_of(one_sided).of(np.array([1.0, 2.0])).tolist() == pytest.approx([1.0, 0.02])
    nothing = Calibration("classes", 0.0, "scores", 9, 0.05)
    assert curve_of(nothing).of(np.array([9.0])).tolist() == [1.0]


def test_the_mixture_is_of_numbers_below_1() -> None:
    assert all(0 < each < 1 for each in doubting._MIXED)
