"""Gates keep what they promise, and promise no more than was shown."""

import json
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from commands import Here, assert_refused, succeeded
from linear_bundles import CLASSES, FEATURES, linear_bundle
from parity_models.bundle.backup import GatedBackup, Refusal
from parity_models.bundle.bundle import Bundle, NewModel, open_bundle, with_measured, write_bundle
from parity_models.bundle.onnx_model import run_options
from parity_models.codes import CodeSpec
from parity_models.errors import BundleError, DataError, UserError
from parity_models.evaluation.judging import calibrate, calibrate_gates, evaluate, measure_gates
from parity_models.evaluation.outputs import Outputs
from parity_models.serving.deployment import Deployment
from parity_models.serving.options import ServeOptions
from parity_models.tasks.metrics import SAME_BOX, agreement_for
from parity_models.trust.calibration import (
    RISK,
    estimate_coverage,
    learn_threshold,
    p_value,
    reached_by_class,
    reached_levels,
)
from parity_models.trust.gate import (
    EVERYTHING,
    NOTHING,
    AnsweredClass,
    Calibration,
    GateLevel,
    classes_of,
    confidences,
    read_classes,
    refused,
)
from parity_models.trust.gates import choose_gates

Floats = NDArray[np.float64]
DRAWS = 300
WEIGHTS = np.random.default_rng(1).normal(size=(FEATURES, CLASSES)).astype(np.float32)


def sigmoid(sure: Floats) -> Floats:
    agrees: Floats = 1 / (1 + np.exp(-sure))
    return agrees


def indifferent(sure: Floats) -> Floats:
    return np.full_like(sure, 0.969)


def overconfident(sure: Floats) -> Floats:
    """The surest answers are the worst."""
    return np.where(sure > 5, 0.95, 0.98)


@pytest.mark.slow
@pytest.mark.parametrize("agrees", [sigmoid, indifferent, overconfident])
@pytest.mark.parametrize("level", [0.9, 0.97, 0.99, None])
def test_true_agreement_is_below_its_level_in_few_runs(agrees: Any, level: float | None) -> None:
    """Though, without a named level, it is the best of seven."""
    rng = np.random.default_rng(3)
    everything = rng.normal(3, 2, 200_000)
    violations = 0
    for seed in range(DRAWS):
        sure = rng.normal(3, 2, 1000)
        agreed = rng.random(1000) < agrees(sure)
        if level is None:
            found = reached_levels(sure, agreed, seed=seed)[-1:]
        else:
            found = [each for each in [learn_threshold(sure, agreed, level, seed)] if each]
        for gate in found:
            given = everything[everything >= gate.threshold]
            violations += agrees(given).mean() < gate.level
    # Chance exceeds this in one of a million runs of a test, at a RISK each.
    most = next(
        most
        for most in range(DRAWS)
        if sum(comb(DRAWS, i) * RISK**i * (1 - RISK) ** (DRAWS - i) for i in range(most + 1))
        > 1 - 1e-6
    )
    assert violations <= most


@given(st.integers(1, 300), st.integers(0, 300), st.sampled_from([0.5, 0.9, 0.99]))
def test_p_values_are_binomial(given: int, disagreed: int, level: float) -> None:
    disagreed = min(given, disagreed)
    exact = sum(
        comb(given, i) * (1 - level) ** i * level ** (given - i) for i in range(disagreed + 1)
    )
    found = p_value(disagreed, given, level)
    assert found == pytest.approx(exact) or (found == 1.0 and exact > RISK)


def test_a_level_that_cannot_be_shown_is_left_out() -> None:
    right = np.ones(1000, np.bool_)
    assert learn_threshold(np.zeros(1000), right, 0.99) == GateLevel(0.99, EVERYTHING, 1.0, 1.0)
    assert learn_threshold(np.zeros(1000), right, 0.999) is None  # 2995 would be needed
    assert learn_threshold(np.zeros(1), right[:1], 0.9) is None
    assert learn_threshold(np.arange(1000.0), ~right, 0.9) is None


# Confidence and agreement


def test_confidence_is_the_log_odds_of_the_likeliest_class() -> None:
    scores = np.array([[1.0, 3.0, 0.0], [2.0, 2.0, -40.0]])
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    largest = shares.max(axis=1)
    expected = np.log(largest / (1 - largest))
    np.testing.assert_allclose(confidences("scores", scores), expected)
    np.testing.assert_allclose(confidences("probabilities", shares), expected)


def test_confidence_orders_the_surest_and_refuses_what_is_not_finite() -> None:
    sure = confidences("scores", np.array([[40.0, 0.0], [41.0, 0.0], [1e4, 0.0]], np.float32))
    assert sure[0] < sure[1] < sure[2] < np.inf
    for kind in ("scores", "probabilities", "none"):
        outputs = np.array([[1.0, np.nan], [np.inf, 0.0], [0.5, 0.5]])
        found = refused(confidences(kind, outputs), outputs, {None: EVERYTHING})
        assert found.tolist() == [True, True, False]


def test_outputs_agree_that_are_of_the_same_class_or_near() -> None:
    classes = agreement_for("top-5", np.eye(3))
    said, predicted = np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[9.0, 0.0], [5.0, 1.0]])
    assert classes(said, predicted).tolist() == [True, False]
    boxes = agreement_for("iou", np.zeros((2, 4)))
    assert boxes.tolerance == SAME_BOX
    one = np.array([[0.0, 0.0, 1.0, 1.0]] * 2)
    overlapping = np.array([[0.0, 0.0, 1.0, 0.6], [0.0, 0.0, 1.0, 0.4]])
    assert boxes(overlapping, one).tolist() == [True, False]
    values = np.random.default_rng(0).normal(7, 2, (1000, 3))
    near = agreement_for("r2", values)
    noise = np.random.default_rng(1).normal(size=values.shape)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    assert near(values + 0.99 * near.tolerance * noise, values).all()
    assert not near(values + 1.01 * near.tolerance * noise, values).any()
    assert near.tolerance == pytest.approx(np.sqrt(0.1 * 3 * 4), rel=0.05)


# Bundles


def exact_bundle(
    folder: Path, k: int = 2, r: int = 1, backup: NDArray[Any] | None = None
) -> Bundle:
    """F is linear, so that it is its own exact parity model."""
    code = CodeSpec("sum", "subtraction", k, r)
    return linear_bundle(folder, WEIGHTS, [WEIGHTS] * r, code, backup)


def inputs(rows: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, FEATURES)).astype(np.float32)


@pytest.mark.parametrize(("k", "r"), [(2, 1), (4, 2), (5, 3)])
@pytest.mark.parametrize("independent", [False, True])
def test_queries_are_reconstructed_soon(tmp_path: Path, k: int, r: int, independent: bool) -> None:
    queries = inputs(101)
    outputs = Outputs(exact_bundle(tmp_path, k, r), queries, predictions=queries @ WEIGHTS)
    answers = outputs.answers(independent=independent)["reconstruction"]
    if independent:  # one of each full group
        assert len(np.unique(answers.rows)) == len(answers.rows) == 101 // k
    else:
        assert sorted(answers.rows) == list(range(101))
    np.testing.assert_allclose(answers.outputs, (queries @ WEIGHTS)[answers.rows], atol=1e-3)


def test_inputs_and_levels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    bundle = exact_bundle(tmp_path)
    for wrong in (np.zeros((5, 3), np.float32), np.zeros((0, FEATURES), np.float32)):
        with pytest.raises(DataError, match=r"the model takes .* FP32 \[6\]|too few"):
            calibrate(bundle, wrong)
    for level in (0.0, 1.0, 99.0, float("nan")):
        with pytest.raises(UserError, match=r"0\.99 stands for 99 of 100"):
            calibrate(bundle, inputs(10), agreement=[level])


# Commands


@pytest.mark.slow
def test_parm_calibrate_puts_gates_into_the_bundle(tmp_path: Path, parm_here: Here) -> None:
    bundle = exact_bundle(tmp_path, backup=-WEIGHTS)
    for name, rows, seed in (("held-out", 2000, 0), ("few", 20, 0), ("test", 500, 1)):
        np.save(tmp_path / f"{name}.npy", inputs(rows, seed))
    held_out = ("calibrate", bundle.path, "--inputs", tmp_path / "held-out.npy")
    done = succeeded(parm_here(*held_out, "--agreement", 0.96))
    assert "the gate of the backup starts closed, as 2,000 queries" in done.stdout
    calibration = open_bundle(bundle.path).manifest.calibration["reconstruction"]
    levels = [each.level for each in calibration.levels]
    assert levels == [0.9, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995]
    found = tmp_path / "found.json"
    succeeded(
        parm_here("evaluate", bundle.path, "--inputs", tmp_path / "test.npy", "--json", found)
    )
    gates = json.loads(found.read_text())["gates"]
    assert [each["level"] for each in gates] == [None, *levels, None]
    assert gates[2]["agreement"] == 1.0
    few = ("--inputs", tmp_path / "few.npy")
    done = parm_here("calibrate", bundle.path, *few)
    assert "the gate of the reconstruction starts closed, as " in done.stdout
    assert not open_bundle(bundle.path).manifest.calibration["reconstruction"].levels
    alone = linear_bundle(tmp_path, WEIGHTS)
    assert_refused(parm_here("calibrate", alone.path, *few), "has no stand-in to calibrate")


# One-sided gates let the classes through that a stand-in may answer, and never another one

Array = NDArray[Any]
NOISY = WEIGHTS + 0.15 * np.random.default_rng(1).normal(size=(2, *WEIGHTS.shape))[1].astype("f")
NAMES = ("allowed", "spam", "fraud", "other")


def named_bundle(folder: Path, backup: Array = NOISY) -> Bundle:
    """A bundle whose model names its classes."""
    plain = linear_bundle(folder, WEIGHTS, backup=backup)
    model = onnx.load_from_string(plain.content(plain.manifest.deployed))
    onnx.helper.set_model_props(model, {"classes": '["' + '", "'.join(NAMES) + '"]'})
    assert plain.manifest.backup is not None
    return write_bundle(
        folder / "named",
        deployed=NewModel(model.SerializeToString(), "linear"),
        backup=plain.stored(plain.manifest.backup),
    )


@given(
    arrays(np.float32, (40, CLASSES), elements=st.floats(width=32)),
    st.lists(st.integers(0, CLASSES - 1), min_size=1, unique=True),
    st.data(),
)
def test_no_other_class_passes(scores: Array, numbers: list[int], data: st.DataObject) -> None:
    may = [AnsweredClass(number, str(number)) for number in numbers]
    sure = data.draw(arrays(np.float64, 300, elements=st.floats(-50, 50)))
    said = data.draw(arrays(np.int64, 300, elements=st.integers(0, CLASSES - 1)))
    agreed = data.draw(arrays(np.bool_, 300))
    agreed |= data.draw(st.booleans())
    levels = reached_by_class(sure, agreed, said, may, named=[0.9])
    for level in levels:
        passed = ~refused(confidences("scores", scores), scores, level.thresholds)
        assert set(classes_of(scores[passed])) <= set(numbers)
        assert not passed[~np.isfinite(scores).all(axis=1)].any()


def test_coverage_is_that_of_the_classes_that_may_answer(tmp_path: Path) -> None:
    bundle, queries = linear_bundle(tmp_path, WEIGHTS, backup=NOISY), inputs(8000, seed=1)
    may = (AnsweredClass(1, "1"),)
    found = calibrate_gates(Outputs(bundle, inputs(8000)), named=[0.95], allowed=may)
    labels = (queries @ WEIGHTS).argmax(axis=1)
    results = measure_gates(Outputs(bundle, queries), found, labels)
    everything, *gated = results
    assert everything.coverage == 1
    share = (classes_of(queries @ NOISY) == 1).mean()
    shown = {each.level: each for each in found["backup"].levels}
    assert 0.95 in shown
    for whole, of_class in zip(gated[::2], gated[1::2], strict=True):
        assert (whole.class_name, of_class.class_name) == (None, "1")
        assert of_class.coverage == whole.coverage <= share
        assert whole.level is not None
        assert whole.coverage == pytest.approx(shown[whole.level].coverage, abs=0.03)
    estimated = estimate_coverage(queries @ NOISY, queries @ WEIGHTS, "top-1", 0.95, may)
    assert estimated == pytest.approx(shown[0.95].coverage, abs=0.05)


def test_classes_are_named_by_the_model_or_numbered(tmp_path: Path) -> None:
    near = named_bundle(tmp_path, (WEIGHTS + NOISY) / 2)
    named = calibrate(near, inputs(6000), answer_only="allowed, fraud=0.97")
    gate = named.manifest.calibration["backup"]
    assert gate.answer_only == (AnsweredClass(0, "allowed"), AnsweredClass(2, "fraud", 0.97))
    shown = [(each.number, each.level) for each in gate.levels[0].classes]
    assert shown == [(0, 0.9), (2, 0.97)]
    assert "  allowed" in str(named.gates)
    found = evaluate(named, inputs(500, seed=2))
    assert "allowed" in str(found)
    numbered = read_classes("3,1=0.9", (), CLASSES)
    assert numbered == (AnsweredClass(3, "3"), AnsweredClass(1, "1", 0.9))
    assert read_classes("fraud", NAMES, CLASSES) == read_classes("2", NAMES, CLASSES)
    assert read_classes("all", NAMES, CLASSES) == ()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("4", "no class '4' to answer; its classes are numbered 0 to 3"),
        ("", "no class ''"),
        ("0,0", "listed twice"),
        ("0=1", "below 1, not '1': write 0=0.999"),
        ("0=", "below 1"),
        ("0=x", "below 1"),
    ],
)
def test_classes_that_cannot_be_are_refused(said: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        read_classes(said, (), CLASSES)


def test_a_further_calibration_keeps_to_the_classes_unless_that_is_lifted(tmp_path: Path) -> None:
    bundle = calibrate(named_bundle(tmp_path), inputs(4000), answer_only="spam")
    again = calibrate(bundle, inputs(4000, seed=1))
    assert again.manifest.calibration["backup"].answer_only == (AnsweredClass(1, "spam"),)
    lifted = calibrate(again, inputs(4000), answer_only="all").manifest.calibration["backup"]
    assert (lifted.answer_only, lifted.levels[0].classes) == ((), ())


def test_a_one_sided_stand_in_never_answers_without_its_gate(tmp_path: Path) -> None:
    bundle = calibrate(named_bundle(tmp_path), inputs(4000), answer_only="spam")
    roles = ["deployed", "backup"]
    (chosen,) = choose_gates(bundle.gates, roles).values()
    assert chosen.shown is not None
    assert chosen.classes == {"spam": chosen.shown.classes[0].level}
    assert [each.number for each in chosen.shown.classes] == [1]
    with pytest.raises(UserError, match="may answer spam only, and without a gate"):
        choose_gates(bundle.gates, roles, 0)
    none = Calibration("classes", 0.0, "scores", 9, 0.05, (), (AnsweredClass(1, "spam"),))
    bundle = with_measured(bundle, calibration={"backup": none})
    (later,) = choose_gates(bundle.gates, roles, 0.9).values()
    assert later.starts == {1: (0.9, NOTHING)}, "it starts closed, and opens for this class alone"
    with pytest.raises(UserError, match="r2 does not judge classes"):
        calibrate_gates(Outputs(bundle, inputs(100)), metric="r2", allowed=[AnsweredClass(0, "0")])


def test_a_backup_in_a_process_answers_these_classes_alone(tmp_path: Path) -> None:
    bundle = calibrate(named_bundle(tmp_path), inputs(4000), answer_only="spam,other")
    backup = GatedBackup(bundle, 0.9)
    answered, refusals = set(), set()
    for row in inputs(200, seed=3):
        answer = backup.answer(backup.read(row[np.newaxis]), run_options())
        assert not isinstance(answer, Refusal)
        refusals.add(answer.refusal)
        if answer.refusal is None:
            answered.add(int(answer.outputs.argmax()))
    assert answered == {1, 3}
    assert Refusal.UNSURE in refusals
    assert backup.gate.level == 0.9


def test_the_models_metadata_name_the_classes(tmp_path: Path) -> None:
    bundle = calibrate(named_bundle(tmp_path), inputs(4000), answer_only="spam,other=0.95")
    served = Deployment(bundle, ServeOptions(agreement=0.9))
    assert served.model.metadata.gates["backup"].classes == {"spam": 0.9, "other": 0.95}


def test_gates_that_contradict_the_classes_do_not_open(tmp_path: Path) -> None:
    bundle = named_bundle(tmp_path)
    two_sided = (GateLevel(0.9, -1e9, 1.0, 1.0),)
    wrong = Calibration("classes", 0.0, "scores", 9, 0.05, two_sided, (AnsweredClass(1, "spam"),))
    written = with_measured(bundle, calibration={"backup": wrong})
    with pytest.raises(BundleError, match="classes it may not answer"):
        open_bundle(written.path)


def test_a_confidence_that_is_no_number_hides_no_threshold() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(4000)
    agreed = sure > 0.3
    sure[::100] = np.nan
    found = learn_threshold(sure, agreed, 0.95)
    assert found is not None
    assert 0.5 < found.coverage < 0.8
    assert learn_threshold(np.full(400, np.nan), np.ones(400, np.bool_), 0.9) is None
