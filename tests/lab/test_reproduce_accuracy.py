"""parm-lab accuracy: a matrix is trained once, written, and refused if it cannot be."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from commands import Here, assert_refused, parm_lab
from idx_files import write_dataset
from parity_models.errors import DataError, UserError
from parity_models.models.bundle import Accuracy
from parity_models_lab.accuracy.approaches import plain_approach
from parity_models_lab.accuracy.matrix import PRESETS, CodeCell, DeployedCell, load_matrix
from parity_models_lab.accuracy.results import CodeResult, DeployedResult, ModelResults
from parity_models_lab.accuracy.run import MatrixRun

pytestmark = pytest.mark.slow

TINY = """
title = "Tiny"

[[deployed]]
task = "digits"
network = "linear"
epochs = 2
codes = [
  { encoder = "stack", decoder = "separate", k = 2, epochs = 1 },
  { encoder = "sum", decoder = "subtraction", k = 2, recipe = "published", epochs = 1 },
]
backups = [{ network = "linear", epochs = 1 }]
free = [
  { code = "berrut", k = 2 },
  { code = "nercc", k = 2 },
]
"""


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
    assert {"stack + separate, k=2", "nercc, k=2, r=1", "berrut, k=2, r=1"} < {*names}
    assert all(0 <= row["A_d"] <= 1 for row in result["rows"])
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "digits-linear-codes.png",
        "digits-linear-overhead.png",
        "digits-linear.json",
        "k.png",
        "models.png",
    ]
    again = lab_here(*args)
    assert again.returncode == 0
    assert "[1/" in first.stderr
    assert "[1/" not in again.stderr


def _run(folder: Path, text: str) -> tuple[list[ModelResults], list[str]]:
    """What a matrix gives, and what of it had to be run."""
    file = folder / "matrix.toml"
    file.write_text(text)
    told: list[str] = []
    results = list(MatrixRun(load_matrix(str(file)), folder / "work", 0, told.append).results())
    return results, [line.split("] ")[1] for line in told]


def _damage_result(work: Path) -> None:
    [result] = [one for one in (work / "results").iterdir() if "sha256" in one.read_text()]
    result.write_text("{")


def _damage_manifest(work: Path) -> None:
    for manifest in (work / "bundles").glob("*/manifest.json"):
        manifest.write_text("{")


def _change_model(work: Path) -> None:
    for model in (work / "bundles").glob("*/deployed.onnx"):
        model.write_bytes(b"another")


def _remove_bundles(work: Path) -> None:
    shutil.rmtree(work / "bundles")


DEPLOYED = TINY.split("codes =")[0]


@pytest.mark.parametrize("harm", [_damage_result, _damage_manifest, _change_model, _remove_bundles])
def test_what_is_damaged_or_gone_is_run_again(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    [before], _ = _run(tmp_path, DEPLOYED)
    harm(tmp_path / "work")
    [after], told = _run(tmp_path, DEPLOYED)
    assert told == ["digits, linear"]
    assert after.deployed.available == before.deployed.available
    assert _run(tmp_path, DEPLOYED)[1] == []


def test_results_belong_to_the_deployed_model_and_the_data_that_they_were_measured_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARM_DATA", str(tmp_path / "data"))
    images = np.random.default_rng(0).integers(0, 256, (240, 28, 28), np.uint8)
    write_dataset(tmp_path / "data" / "mnist", zipped=False, images=images)
    text = DEPLOYED.replace("digits", "mnist") + 'free = [{ code = "berrut", k = 2 }]'
    assert len(_run(tmp_path, text)[1]) == 2
    _, told = _run(tmp_path, text.replace("epochs = 2", 'epochs = 2\nrecipe = "published"'))
    assert told == [
        "mnist, linear, trained as published",
        "mnist, linear, trained as published: berrut, k=2, r=1",
    ]
    write_dataset(tmp_path / "data" / "mnist", zipped=False, images=images[:120])
    results, told = _run(tmp_path, text)
    assert told == ["mnist, linear", "mnist, linear: berrut, k=2, r=1"]
    assert results[-1].deployed.queries == 120


def test_data_that_are_missing_are_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARM_DATA", str(tmp_path / "none"))
    missing = '[[deployed]]\ntask = "parity_models_lab.tasks:Cifar10"\nnetwork = "linear"'
    with pytest.raises(DataError, match="Cifar10 are not in"):
        _run(tmp_path, DEPLOYED + missing)
    assert not (tmp_path / "work" / "bundles").exists()


def test_what_cannot_be_is_told_before_anything_is_trained(lab_here: Here, tmp_path: Path) -> None:
    matrix = tmp_path / "tiny.toml"
    matrix.write_text(TINY.replace("k = 2, epochs = 1 }", "k = 5, epochs = 1 }", 1))
    matrix.write_text(matrix.read_text().replace('"stack"', '"concatenation"'))
    args = ["accuracy", "--preset", str(matrix), "--work", str(tmp_path / "work")]
    out = ["--out", str(tmp_path / "out")]
    assert_refused(lab_here(*args, *out), "concatenation tiles k = 2, 3, 4, 6, 8, 9 images")
    for folder in (str(matrix), "/proc/results"):
        assert_refused(lab_here(*args, "--out", folder), "--out")
    assert not (tmp_path / "work" / "bundles").exists()


def test_an_interrupted_matrix_writes_what_is_done(tmp_path: Path) -> None:
    matrix = tmp_path / "two.toml"
    second = DEPLOYED.split("[[deployed]]")[1].replace("epochs = 2", "seconds = 600")
    matrix.write_text(f"{DEPLOYED}[[deployed]]{second}")
    args = ["accuracy", "--preset", str(matrix)]
    args += ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    with subprocess.Popen(parm_lab(*args), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("[2/2"):
                break
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == 130
    assert (tmp_path / "out" / "digits-linear.json").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_can_be_read(preset: str) -> None:
    matrix = load_matrix(preset)
    assert matrix.deployed
    assert all(model.codes for model in matrix.deployed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = 'x'\ndeployed = []", "needs a deployed model"),
        (TINY.replace('"digits"', '"dgits"'), "dgits"),
        (TINY.replace("epochs = 2", "epoch = 2"), "epoch"),
        (TINY.replace('"berrut"', '"barret"'), "barret"),
        (TINY.replace('"stack"', '"stuck"'), "stuck"),
        ("title", "not a matrix"),
    ],
)
def test_what_is_no_matrix_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        load_matrix(str(file))


def test_a_matrix_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="quick, paper, full"):
        load_matrix(str(tmp_path / "none.toml"))


def _model(network: str, degraded: float, seconds: float = 60) -> ModelResults:
    def code(encoder: str, decoder: str, share: float, recipe: str = "distilled") -> CodeResult:
        accuracy = Accuracy("top-1", 0.9, share, (share, share), {"0.1": 0.8}, share, 100, (share,))
        cell = CodeCell(encoder=encoder, decoder=decoder, recipe=recipe)
        return CodeResult(cell, accuracy, 1.0, 1.0, 1.0, 1, seconds, "2026-01-01")

    return ModelResults(
        DeployedCell(task="fashion-mnist", network=network),
        DeployedResult("0" * 64, "top-1", 0.9, 100, 1, 1.0, "2026-01-01"),
        (
            code("stack", "separate", degraded),
            code("sum", "subtraction", 0.785, "published"),
            code("concatenation", "subtraction", 0.805, "published"),
        ),
        (
            plain_approach("default prediction", 0.0, 0.9, 0.1),
            plain_approach("berrut, k=2, r=1", 0.5, 0.9, 0.6),
        ),
    )


def test_results_are_plain_json(tmp_path: Path) -> None:
    model = _model("mlp", 0.8)
    text = msgspec.json.encode(model)
    assert json.loads(text)["deployed"]["metric"] == "top-1"
    assert msgspec.json.decode(text, type=ModelResults) == model
