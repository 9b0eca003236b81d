"""parm-lab accuracy: a matrix is trained once, written, and refused if it cannot be."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import Here, assert_refused
from parity_models.errors import UserError
from parity_models_lab.accuracy import FILES, PRESETS, BerrutCode, Matrix
from parity_models_lab.results import load_toml

pytestmark = pytest.mark.slow

TINY = """
[[deployed]]
task = "digits"
network = "linear"
epochs = 2
codes = [
  { encoder = "stack", decoder = "separate", k = 2, epochs = 1 },
  { encoder = "sum", decoder = "subtraction", k = 2, recipe = "published", epochs = 1 },
  { encoder = "LEARNED:MLPEncoder", decoder = "LEARNED:MLPDecoder", k = 2, epochs = 1 },
  { encoder = "LEARNED:ConvolutionalEncoder", decoder = "subtraction", k = 2, epochs = 1 },
]
backups = [{ network = "linear", epochs = 1 }]
""".replace("LEARNED", "parity_models_lab.learned")


def test_a_matrix_is_written_and_not_run_twice(lab_here: Here, tmp_path: Path) -> None:
    matrix = tmp_path / "tiny.toml"
    matrix.write_text(TINY)
    args = ["accuracy", "--preset", str(matrix)]
    args += ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    first = lab_here(*args)
    assert first.returncode == 0, first.stderr
    result = json.loads((tmp_path / "out" / "digits-linear.json").read_text())
    names = [row["approach"] for row in result["rows"]]
    assert names[0] == "default prediction"
    assert "replication" in names
    assert {"stack + separate, k=2", "berrut, k=2, r=1"} < {*names}
    assert all(0 <= row["A_d"] <= 1 for row in result["rows"])
    again = lab_here(*args)
    assert again.returncode == 0
    assert "digits-linear: berrut, k=2, r=1" in first.stderr
    assert "digits-linear" not in again.stderr


@pytest.mark.parametrize(
    ("was", "wrong", "reason"),
    [
        ('"digits"', '"dgits"', "there is no task 'dgits'"),
        ('"digits"', '"cifar-10"', "the data are not in"),
        ('network = "linear"', 'network = "lineer"', "lineer"),
        ('"stack"', '"stuck"', "stuck"),
        (
            '"stack", decoder = "separate", k = 2',
            '"concatenation", decoder = "separate", k = 5',
            "concatenation tiles k = 2, 3, 4, 6, 8, 9 images",
        ),
        ('"sum"', '"stack"', "the published recipe is for"),
    ],
)
def test_impossible_matrices_are_refused_before_training(
    lab_here: Here,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    was: str,
    wrong: str,
    reason: str,
) -> None:
    monkeypatch.setenv("PARM_DATA", str(tmp_path / "none"))
    matrix = tmp_path / "tiny.toml"
    matrix.write_text(TINY.replace(was, wrong))
    args = ["accuracy", "--preset", str(matrix), "--work", str(tmp_path / "work")]
    assert_refused(lab_here(*args, "--out", str(tmp_path / "out")), reason)
    assert_refused(lab_here(*args, "--out", str(matrix)), "--out")
    assert not (tmp_path / "work" / "bundles").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_can_be_read(preset: str) -> None:
    matrix = load_toml(preset, FILES, Matrix, "notes")
    assert matrix.deployed
    assert all(model.codes for model in matrix.deployed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deployed = []", "deployed: Expected .* length >= 1"),
        (TINY.replace("epochs = 2", "epoch = 2"), "epoch"),
    ],
)
def test_invalid_matrices_are_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        load_toml(str(file), FILES, Matrix, "notes")


# Berrut coding

seeds = st.integers(0, 2**32 - 1)


@given(st.integers(2, 6), st.integers(0, 3), seeds)
def test_equal_queries_come_back_whatever_the_model(k: int, r: int, seed: int) -> None:
    """Coded queries are weighted means, so where all queries are one, so are they."""
    code, rng = BerrutCode(k, r), np.random.default_rng(seed)
    query = rng.normal(size=(3, 4))
    coded = code.encode(np.stack([query] * k))
    assert len(coded) == k + r
    np.testing.assert_allclose(coded, np.stack([query] * (k + r)), rtol=0, atol=1e-9)
    answers = code.decode(np.tanh(coded), rng.choice(k + r, r, replace=False).tolist())
    np.testing.assert_allclose(answers, np.tanh(np.stack([query] * k)), rtol=0, atol=1e-6)


def test_answers_count_as_the_definition_says() -> None:
    """One group at a time: every set unavailable in turn."""
    code, rng = BerrutCode(3, 2), np.random.default_rng(1)
    inputs = rng.normal(size=(31, 6)).astype(np.float32)
    weights = rng.normal(size=(6, 4)).astype(np.float32)
    labels = (inputs @ weights).argmax(axis=1)

    def run(x: np.ndarray) -> np.ndarray:
        values: np.ndarray = np.tanh(x @ weights) ** 3
        return values

    accuracies = code.accuracies(run, inputs, labels, "top-1", 3)
    groups = np.random.default_rng(3).permutation(31)[:30].reshape(10, 3)
    for number, found in enumerate(accuracies):
        right = []
        for group in groups:
            outputs = run(code.encode(inputs[group]))
            for lost in combinations(range(5), number):
                right.extend(code.decode(outputs, lost).argmax(axis=1) == labels[group])
        assert found == pytest.approx(np.mean(right))
