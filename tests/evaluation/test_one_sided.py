"""One-sided gates let the classes through that a stand-in may answer, and never another one."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from linear_bundles import CLASSES, FEATURES, linear_bundle
from parity_models.errors import BundleError, UserError
from parity_models.evaluation.accuracy import measure_gates
from parity_models.evaluation.calibration import (
    calibrate_gates,
    estimate_coverage,
    reached_by_class,
)
from parity_models.evaluation.judging import calibrate, evaluate
from parity_models.evaluation.outputs import Outputs
from parity_models.models.bundle import Bundle, NewModel, open_bundle, with_measured, write_bundle
from parity_models.models.gate import (
    AnsweredClass,
    Calibration,
    Gate,
    GateLevel,
    classes_of,
    read_classes,
)
from parity_models.models.onnx_model import run_options
from parity_models.protection.protect import SearchOptions
from parity_models.serving.deployment import Deployment
from parity_models.serving.options import ServeOptions
from parity_models.trust.backup import GatedBackup, Refusal
from parity_models.trust.gates import choose_gates

Array = NDArray[Any]
RNG = np.random.default_rng(1)
WEIGHTS = RNG.normal(size=(FEATURES, CLASSES)).astype(np.float32)
NOISY = WEIGHTS + 0.15 * RNG.normal(size=WEIGHTS.shape).astype(np.float32)
NAMES = ("allowed", "spam", "fraud", "other")


def inputs(rows: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, FEATURES)).astype(np.float32)


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
        passed = ~Gate("scores", level).refused(scores)
        assert set(classes_of(scores[passed])) <= set(numbers)
        assert not passed[~np.isfinite(scores).all(axis=1)].any()


def test_coverage_is_that_of_the_classes_that_may_answer(tmp_path: Path) -> None:
    bundle, queries = linear_bundle(tmp_path, WEIGHTS, backup=NOISY), inputs(8000, seed=1)
    may = (AnsweredClass(1, "1"),)
    found = calibrate_gates(Outputs(bundle, inputs(8000)), named=[0.95], answer_only=may)
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
    (chosen,) = choose_gates(bundle, roles, None).values()
    assert chosen.classes == {"spam": chosen.level.classes[0].level}
    assert [each.number for each in chosen.level.classes] == [1]
    with pytest.raises(UserError, match="may answer spam only, and without a gate"):
        choose_gates(bundle, roles, 0)
    none = Calibration("classes", 0.0, "scores", 9, 0.05, (), (AnsweredClass(1, "spam"),))
    with pytest.raises(UserError, match=r"calibrate it with more queries"):
        choose_gates(with_measured(bundle, calibration={"backup": none}), roles, None)
    with pytest.raises(UserError, match="r2 judges no classes"):
        calibrate_gates(
            Outputs(bundle, inputs(100)), metric="r2", answer_only=[AnsweredClass(0, "0")]
        )
    with pytest.raises(UserError, match="--answer-only needs a gate"):
        SearchOptions(ungated=True, answer_only="spam")


def test_a_backup_in_a_process_answers_these_classes_alone(tmp_path: Path) -> None:
    bundle = calibrate(named_bundle(tmp_path), inputs(4000), answer_only="spam,other")
    backup = GatedBackup(bundle, 0.9)
    given = [
        backup.answer(backup.read(row[np.newaxis]), run_options()) for row in inputs(200, seed=3)
    ]
    answered = [each[0] for each in given if not isinstance(each, Refusal)]
    assert {int(each.argmax()) for each in answered} == {1, 3}
    assert any(each is Refusal.UNSURE for each in given)
    assert backup.gate is not None
    assert backup.gate.level.level == 0.9


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
