"""parm-lab reproduce real: what is measured of real models, and what the page says."""

import json
from pathlib import Path

import numpy as np
import pytest

from commands import Here, assert_refused
from encoder_models import exported, sentences
from onnx_models import linear_model
from own_models import DIGITS
from parity_models_lab.real.measure import same_neighbours
from parity_models_lab.real.results import RealResult, StandInResult
from parity_models_lab.real.targets import targets

pytestmark = pytest.mark.slow


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A prepared model, and a stand-in for it that is the model itself."""
    folder = tmp_path / "digits"
    folder.mkdir()
    train, test = DIGITS.train, DIGITS.test
    features = train.inputs.reshape(len(train), -1)
    weights = np.linalg.lstsq(features, np.eye(10, dtype=np.float32)[train.labels], rcond=None)[0]
    for name in ("model.onnx", "backup.onnx"):
        linear_model(folder / name, (1, 8, 8), (10,), 5 * weights.astype(np.float32))
    np.savez(folder / "inputs.npz", input=train.inputs)
    np.savez(folder / "test.npz", input=test.inputs)
    np.save(folder / "labels.npy", test.labels)
    networks = [{"network": "linear", "seconds": 1}]
    about = {"name": "digits", "title": "Digits", "about": "Digits.", "networks": networks}
    (folder / "about.json").write_text(json.dumps(about))
    return folder


def test_each_stand_in_has_a_row_and_is_measured_once(
    lab_here: Here, digits: Path, tmp_path: Path
) -> None:
    page, work = tmp_path / "page.md", tmp_path / "work"
    args = ("reproduce", "real", digits, "--out", page, "--work", work)
    first = lab_here(*args)
    assert first.returncode == 0, first.stderr
    text = page.read_text()
    rows = {line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if "| " in line}
    assert {"linear", "backup"} <= rows
    [itself] = [line for line in text.splitlines() if line.startswith("| backup |")]
    assert "100.00%" in itself
    assert "elsewhere" in itself
    assert "trained for 1 s" in first.stderr
    again = lab_here(*args)
    assert "trained" not in again.stderr
    assert page.read_text() == text
    (digits / "labels.npy").unlink()
    changed = lab_here(*args)
    assert "trained for 1 s" in changed.stderr
    assert "A_a 9" not in page.read_text()


def test_a_parity_model_whose_slots_are_not_isolated_has_a_row(
    lab_here: Here, tmp_path: Path
) -> None:
    folder, page = tmp_path / "encoder", tmp_path / "page.md"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(exported("sentence"))
    for seed, name in enumerate(("inputs.npz", "test.npz")):
        np.savez(folder / name, **sentences(600, seed))  # type: ignore[arg-type]
    networks = [{"network": "superposition", "seconds": 1, "k": 2}]
    about = {"name": "encoder", "title": "Encoder", "about": "Sentences.", "networks": networks}
    (folder / "about.json").write_text(json.dumps(about))
    made = lab_here("reproduce", "real", folder, "--out", page, "--work", tmp_path / "work")
    assert made.returncode == 0, made.stderr
    assert "| superposition, k = 2 | " in page.read_text()


def test_a_folder_that_is_no_prepared_model_is_refused(
    lab_here: Here, digits: Path, tmp_path: Path
) -> None:
    args = ("--out", tmp_path / "page.md", "--work", tmp_path / "work")
    assert_refused(lab_here("reproduce", "real", tmp_path, *args), "examples/real")
    (digits / "test.npz").unlink()
    assert_refused(lab_here("reproduce", "real", digits, *args), "test.npz is missing")
    assert not (tmp_path / "page.md").exists()


def test_neighbours_are_those_of_the_other_queries() -> None:
    predictions = np.eye(4, dtype=np.float32)[[0, 0, 1, 1]] + [[0, 0, 0.1, 0], [0] * 4] * 2
    assert same_neighbours(predictions, predictions) == 1.0
    assert same_neighbours(predictions[::-1], predictions) == 0.0


def _stand_in(network: str, relative: float, degraded: float, agreement: float) -> StandInResult:
    return StandInResult(
        network, None, degraded, agreement, None, None, 0.7, 0.99, relative, relative
    )


def _result(name: str, *stand_ins: StandInResult) -> RealResult:
    return RealResult(
        name, name, "", "", "top-1", "logits", 9, 9, 0.9, 1.0, "2026-01-01", 1.0, stand_ins
    )


def test_targets_are_judged_among_those_that_are_fast_enough() -> None:
    slow, fast = _stand_in("slow", 0.1, 0.95, 0.96), _stand_in("fast", 0.04, 0.89, 0.9)
    [bank] = targets([_result("banking77", slow, fast)])
    assert not bank.met
    assert bank.measured.startswith("89.00% (fast")
    [bank] = targets([_result("banking77", _stand_in("fast", 0.04, 0.9, 0.9))])
    assert bank.met
    superposed = _stand_in("superposition, k = 2", 1.1, 0.88, 0.9)
    _, parity = targets([_result("banking77", superposed, fast)])
    assert parity.met
    assert parity.wanted == "at least 87.00% (A_a less 3%)"
    [none] = targets([_result("banking77", slow)])
    assert not none.met
    assert none.measured == "no stand-in is that fast; the fastest takes 10%"
    agreement, coverage = targets([_result("file-types", slow, fast)])
    assert agreement.met
    assert not coverage.met
    assert list(targets([_result("another", slow)])) == []
