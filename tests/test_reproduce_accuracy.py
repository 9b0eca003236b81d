"""parm reproduce accuracy: a matrix is trained once, reported, and refused if it cannot be."""

import json
import subprocess
from pathlib import Path

import msgspec
import pytest

from parity_models.bench.accuracy.matrix import PRESETS, CodeCell, DeployedCell, load_matrix
from parity_models.bench.accuracy.report import approaches, behind
from parity_models.bench.accuracy.results import CodeResult, DeployedResult, ModelResults
from parity_models.bench.accuracy.run import MatrixRun
from parity_models.bench.accuracy.targets import targets
from parity_models.errors import UserError
from parity_models.evaluation.approaches import plain_approach
from parity_models.models.bundle import Accuracy
from served import parm

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
  { code = "linear", k = 2 },
  { code = "berrut", k = 2 },
  { code = "nested-regression", k = 2 },
  { code = "lagrange", k = 2, degree = 1 },
]
"""


def run_parm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(parm(*arguments), capture_output=True, text=True)


def test_a_matrix_is_reported_and_not_run_twice(tmp_path: Path) -> None:
    matrix = tmp_path / "tiny.toml"
    matrix.write_text(TINY)
    args = ["reproduce", "accuracy", "--preset", str(matrix)]
    args += ["--out", str(tmp_path / "report.md"), "--work", str(tmp_path / "work")]
    first = run_parm(*args)
    assert first.returncode == 0, first.stderr
    report = (tmp_path / "report.md").read_text()
    for said in ("digits, linear", "stack + separate", "published recipe", "default prediction"):
        assert said in report
    assert "lagrange of degree 1" in report
    pictures = sorted(file.name for file in (tmp_path / "report").iterdir())
    assert pictures == [
        "digits-linear-overall.png",
        "digits-linear-overhead.png",
        "k.png",
        "models.png",
    ]
    again = run_parm(*args)
    assert again.returncode == 0
    assert "min left" in first.stderr
    assert "min left" not in again.stderr
    assert (tmp_path / "report.md").read_text() == report


def test_a_damaged_result_is_run_again(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY.split("codes =")[0])
    told: list[str] = []
    [before] = MatrixRun(load_matrix(str(file)), tmp_path / "work", 0, told.append).results()
    [result] = [
        one for one in (tmp_path / "work" / "results").iterdir() if "metric" in one.read_text()
    ]
    result.write_text("{")
    [after] = MatrixRun(load_matrix(str(file)), tmp_path / "work", 0, told.append).results()
    assert len(told) == 2
    assert after.deployed.available == before.deployed.available


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_can_be_read(preset: str) -> None:
    matrix = load_matrix(preset)
    for model in matrix.deployed:
        for code in model.codes:
            assert code.spec.k == code.k


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
    def code(recipe: str, share: float, decoder: str) -> CodeResult:
        accuracy = Accuracy("top-1", 0.9, share, (share, share), {"0.1": 0.8}, share, 100, (share,))
        cell = CodeCell(encoder="sum", decoder=decoder, recipe=recipe)
        return CodeResult(cell, accuracy, 1.0, 1.0, 1.0, 1, seconds, "2026-01-01")

    return ModelResults(
        DeployedCell(task="fashion-mnist", network=network),
        DeployedResult("top-1", 0.9, 100, 1, 1.0, "2026-01-01"),
        (code("distilled", degraded, "separate"), code("published", 0.785, "subtraction")),
        (plain_approach("berrut, k=2, r=1", 0.5, 0.9, 0.6),),
    )


def test_targets_are_judged_by_what_was_measured() -> None:
    met = {one.what.split(" (")[0]: one.met for one in targets([_model("mlp", 0.8875)])}
    assert set(met.values()) == {True}
    assert len(met) == 2
    missed = list(targets([_model("mlp", 0.8)]))
    assert [one.met for one in missed] == [False, False]
    [points, drop] = targets([_model("resnet-small", 0.895)])
    assert points.met
    assert points.measured == "0.50 points"
    assert drop.met


def test_a_code_that_a_baseline_beats_is_named() -> None:
    assert behind(_model("mlp", 0.8)) == []
    [said] = behind(_model("mlp", 0.5))
    assert "does not beat berrut" in said
    names = [one.name for one in approaches(_model("mlp", 0.5))]
    assert names[-1] == "replication"


def test_results_are_plain_json(tmp_path: Path) -> None:
    model = _model("mlp", 0.8)
    text = msgspec.json.encode(model)
    assert json.loads(text)["deployed"]["metric"] == "top-1"
    assert msgspec.json.decode(text, type=ModelResults) == model
