"""Inputs, labels and models that nothing can be learned from are refused or warned about."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from commands import invoke
from onnx_models import linear_model
from own_models import DIGITS, ROWS, STACK, Parm
from parity_models.errors import DataError, ModelError, ParityModelsError, TrainingError
from parity_models.models.bundle import NewModel, write_bundle
from parity_models.training import TrainingOptions
from trainings import ONCE, evaluate, train_parity

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("inputs", "arguments", "reason"),
    [
        (ROWS[:0], "", "there are 0 inputs in rows.npy, too few: give 6 or more"),
        (ROWS[:5], "", "there are 5 inputs in rows.npy, too few: give 6 or more"),
        (ROWS, "--k 32", "there are 60 inputs in rows.npy, too few: give 96 or more"),
        (ROWS[:, :5], "", "has rows of shape [5]; the model takes 'input' FP32 [6]"),
        (np.where(ROWS > 2, np.nan, ROWS), "", "hold NaN or infinite values"),
        (np.ones_like(ROWS), "", "all inputs in rows.npy are the same"),
        (ROWS, "--encoder concatenation", "concatenation needs images"),
        (ROWS, "--encoder sum", "could not tell the slots apart"),
        (ROWS, "--k 1", "k must be 2 or more"),
        (ROWS, "--metric magic", "no metric is called 'magic'"),
        (ROWS, "--metric iou", "iou judges boxes"),
        (1e36 * np.abs(ROWS), "", "predicts NaN or infinite values"),
        (ROWS, "--out /proc/bundle", "nothing can be written to /proc"),
        (ROWS, "--out model.onnx/bundle", "nothing can be written to"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    parm: Parm, tmp_path: Path, inputs: NDArray[np.float32], arguments: str, reason: str
) -> None:
    linear_model(tmp_path / "model.onnx", (6,), (3,), np.full((6, 3), 1e3, np.float32))
    np.save("rows.npy", inputs)
    said = parm(
        "parity --model model.onnx --inputs rows.npy --out bundle --parity-network mlp "
        + arguments,
        code=2,
    )
    assert reason in said
    assert not (tmp_path / "bundle").exists()


class Aside(nn.Module):
    """What it predicts for a row depends on the rows beside it."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows - rows.mean(dim=0)


def test_models_that_nothing_can_be_learned_from_are_refused(tmp_path: Path) -> None:
    constant = nn.Linear(6, 3)
    nn.init.zeros_(constant.weight)
    with pytest.raises(DataError, match="predicts the same for all inputs"):
        train_parity(constant, STACK, ROWS, tmp_path / "b", ONCE, network="linear")
    with pytest.raises(ModelError, match="depends on the others in its batch"):
        train_parity(Aside(), STACK, ROWS, tmp_path / "b", ONCE, network="linear")


def diverged(input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> nn.Module:
    layer = nn.Linear(input_shape[0], output_shape[0] * output_shape[1])
    nn.init.constant_(layer.weight, float("nan"))
    return nn.Sequential(layer, nn.Unflatten(1, output_shape))


class Diverging(nn.Module):
    """Learns for an epoch, and is not finite from the first step of the next one on."""

    def __init__(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(input_shape[0], output_shape[0] * output_shape[1])
        self.shape, self.judged = output_shape, False

    def train(self, mode: bool = True) -> "Diverging":
        self.judged = self.judged or (not mode and self.stepped)
        return super().train(mode)

    stepped = False

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.stepped = self.stepped or self.training
        outputs: torch.Tensor = self.layer(rows).unflatten(1, self.shape)
        return outputs * float("nan") if self.training and self.judged else outputs


def test_a_training_that_diverges_later_ends_there_and_says_so(tmp_path: Path) -> None:
    ten = TrainingOptions(epochs=10, device="cpu")
    fitted = train_parity(
        nn.Linear(6, 3), STACK, ROWS, tmp_path / "b", ten, network=Diverging
    ).fitted
    assert fitted.diverged
    assert (fitted.best_epoch, fitted.epochs) == (1, 2)


def test_a_training_that_diverged_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the training diverged"):
        train_parity(nn.Linear(6, 3), STACK, ROWS, tmp_path / "b", ONCE, network=diverged)
    assert not (tmp_path / "b").exists()


def test_predictions_that_are_no_numbers_are_not_judged(tmp_path: Path) -> None:
    bundle = train_parity(nn.Linear(6, 3), STACK, ROWS, tmp_path / "b", ONCE)
    with np.errstate(over="ignore"), pytest.raises(DataError, match="gives NaN or infinite values"):
        evaluate(bundle, ROWS * np.float32(3e38), np.zeros(len(ROWS), np.int64))


def test_labels_of_values_may_be_whole_numbers(parm: Parm, tmp_path: Path) -> None:
    weights = np.arange(6, dtype=np.float32)[:, None]
    linear_model(tmp_path / "model.onnx", (6,), (1,), weights)
    rows = np.random.default_rng(1).integers(0, 9, (90, 6)).astype(np.float32)
    np.save("rows.npy", rows)
    parm("parity --model model.onnx --inputs rows.npy --out b --epochs 2 --parity-network linear")
    for labels in (rows @ weights, (rows @ weights)[:, 0]):
        for kind in (np.uint8, np.int64, np.float64):
            np.save("labels.npy", labels.astype(kind))
            parm("evaluate b --inputs rows.npy --labels labels.npy --json out.json")
            told = json.loads(Path("out.json").read_text())
            assert told["available_accuracy"] == pytest.approx(1, abs=1e-3)


def test_stand_ins_worth_nothing_are_warned_about(
    digits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("few.npy", DIGITS.train.inputs[:40])
    command = ["parity", "--model", str(digits / "model.onnx"), "--inputs", "few.npy"]
    command += ["--out", "b", "--seconds", "1e-6", "--parity-network", "mynet:zeros"]
    Path("mynet.py").write_text(
        "from math import prod\n"
        "from torch import nn\n"
        "def zeros(takes, gives):\n"
        "    layer = nn.Linear(prod(takes), prod(gives))\n"
        "    nn.init.zeros_(layer.weight)\n"
        "    return nn.Sequential(nn.Flatten(), layer, nn.Unflatten(1, gives))\n"
    )
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert "reconstruction is no better than the same prediction for every" in result.stdout
    command = ["backup", "--from", "b", "--inputs", "few.npy", "--network", "mynet:zeros"]
    result = invoke(*command, "--out", "backed", "--seconds", "1e-6")
    assert result.exit_code == 0, result.output
    assert "the backup is no better than the same prediction for every query" in result.stdout


def test_options_that_do_not_go_together_are_refused(parm: Parm, digits: Path) -> None:
    write_bundle("plain", deployed=NewModel(digits / "model.onnx", "own"))
    np.save("alike.npy", np.ones((4, *DIGITS.train.inputs.shape[1:]), np.float32))
    for arguments, reason in [
        ("parity --out b", "Missing option"),
        ("parity --model {digits}/model.onnx --out b", "give some as inputs"),
        ("parity --from plain --out b", "give some as inputs"),
        ("backup --from plain --network linear --out b", "give some as inputs"),
        ("evaluate plain", "give queries with --inputs"),
        ("evaluate plain --labels {digits}/labels.npy", "labels and a metric belong to inputs"),
        (
            "evaluate plain --inputs {digits}/inputs.npy --labels {digits}/labels.npy",
            "holds 400 labels for 1200 inputs",
        ),
        ("evaluate plain --inputs {digits}/labels.npy", "save floating point"),
        ("evaluate plain --inputs alike.npy", "all inputs in alike.npy are the same"),
    ]:
        assert reason in parm(arguments, code=2)


def test_inputs_in_python_are_checked_as_well(digits: Path, tmp_path: Path) -> None:
    inputs = DIGITS.train.inputs.copy()
    inputs[5, 0, 1, 2] = np.nan
    for wrong in (inputs, inputs[:3], np.zeros_like(inputs), inputs.astype(float)):
        with pytest.raises(DataError):
            train_parity(digits / "model.onnx", STACK, wrong, tmp_path / "b", ONCE)
    with pytest.raises(TrainingError):
        train_parity(
            digits / "model.onnx", STACK, DIGITS.train.inputs, tmp_path / "b", ONCE, network="x"
        )
    assert issubclass(TrainingError, ParityModelsError)
