"""A model that this package did not make: opened, imitated without labels, or refused."""

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import parity_models as pm
from onnx_models import linear_model, output_of
from parity_models.bundle.bundle import open_bundle
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.errors import DataError, TrainingError
from parity_models.progress import Callbacks, Progress
from parity_models.training import TrainingOptions
from present import some
from trainings import DIGITS, ROWS, STACK, Parm, evaluate, train_backup, train_parity

pytestmark = pytest.mark.slow

Shape = tuple[int, ...]


def test_one_command_leads_to_a_measured_bundle(parm: Parm, digits: Path, tmp_path: Path) -> None:
    said = parm(
        "parity --model {digits}/model.onnx --inputs {digits}/inputs.npy --out bundle --k 2 "
        "--network mlp --epochs 20"
    )
    assert "top-1 agreement, 120 queries" in said
    assert "stand-in" in said
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert (manifest.deployed.network, manifest.deployed_training) == ("own", None)
    accuracy = some(manifest.accuracy)
    assert accuracy.available_accuracy == 1
    assert accuracy.degraded_accuracy == accuracy.agreement
    assert some(some(manifest.inference_times).parity) > 0
    assert some(manifest.parity_training).inputs == 864  # a tenth each validates, calibrates, tests
    assert manifest.calibration["reconstruction"].queries == 60
    assert (digits / "model.onnx").read_bytes() == (tmp_path / "bundle/deployed.onnx").read_bytes()

    parm(
        "evaluate bundle --inputs {digits}/test.npy --labels {digits}/labels.npy --json right.json"
    )
    right = json.loads((tmp_path / "right.json").read_text())
    assert (right["metric"], right["queries"]) == ("top-1", 400)
    assert right["available_accuracy"] < 1
    assert right["degraded_accuracy"] > 0.75
    parm(
        "backup --model bundle --network linear --inputs {digits}/inputs.npy --out bundle "
        "--epochs 60"
    )
    backed = open_bundle(tmp_path / "bundle").manifest
    assert some(some(backed.accuracy).backup_accuracy) > 0.9
    assert some(some(backed.inference_times).backup) > 0
    assert backed.calibration["reconstruction"] == manifest.calibration["reconstruction"]
    assert [each.level for each in backed.calibration["backup"].levels][:1] == [0.9]


def test_a_stand_in_that_stays_keeps_its_gate_and_is_judged_only_if_it_learned_the_same(
    tmp_path: Path,
) -> None:
    """It may have learned from the queries that calibrate the new one."""
    rows = np.random.default_rng(2).normal(size=(600, 6)).astype(np.float32)
    backed = pm.train_backup(
        nn.Linear(6, 3), rows[:300], out=tmp_path / "backed", network="linear", epochs=1
    )
    both = pm.train_parity(backed, rows, out=tmp_path / "both", network="linear", epochs=1)
    assert set(both.gates) == {"reconstruction", "backup"}
    assert both.gates["backup"] == backed.gates["backup"]
    # Nor is it judged by queries that it may have learned from.
    accuracy = some(both.manifest.accuracy)
    assert (accuracy.agreement is None, accuracy.backup_accuracy) == (False, None)
    again = pm.train_backup(both, rows, out=tmp_path / "again", network="mlp", epochs=1)
    assert some(again.manifest.backup).network == "mlp", "it takes the place of the first"
    assert again.gates["reconstruction"] == both.gates["reconstruction"]
    accuracy = some(again.manifest.accuracy)
    assert None not in (accuracy.backup_accuracy, accuracy.agreement)


def test_a_torch_module_is_imitated_and_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Linear(6, 2).train()
    rows = np.random.default_rng(1).normal(size=(800, 6)).astype(np.float32)
    outcome = train_parity(
        module, STACK, rows, tmp_path / "b", TrainingOptions(epochs=40), network="mlp", metric="r2"
    )
    assert module.training
    deployed = OnnxModel(outcome.path / "deployed.onnx")
    expected = module(torch.from_numpy(rows[:50])).detach().numpy()
    np.testing.assert_allclose(output_of(deployed, rows[:50]), expected, rtol=1e-4, atol=1e-5)
    accuracy = evaluate(outcome, rows[:50], expected, metric="r2")
    assert some(accuracy.degraded_accuracy) > 0.8
    with np.errstate(over="ignore"), pytest.raises(DataError, match="gives NaN or infinite values"):
        evaluate(outcome, rows[:50] * np.float32(3e38), expected, metric="r2")


def test_a_path_in_python_is_an_onnx_file_or_a_bundle(digits: Path, tmp_path: Path) -> None:
    inputs = DIGITS.train.inputs
    predicted: list[Progress] = []
    bars = Callbacks(predicted.append)
    once = train_parity(
        digits / "model.onnx", STACK, inputs, tmp_path / "a", network="linear", callbacks=bars
    )
    (last, *_) = (each for each in reversed(predicted) if "predictions" in each.work)
    assert last.done >= len(inputs)
    again = train_parity(str(once.path), STACK, inputs, tmp_path / "b", network="linear")
    assert once.manifest.parity[0].sha256 == again.manifest.parity[0].sha256
    assert train_backup(again, "linear", inputs, tmp_path / "c").manifest.backup


def test_the_examples_commands_lead_to_a_measured_bundle(parm: Parm, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "own_model.py"
    commands = [line.strip() for line in example.read_text().splitlines()[2:6]]
    assert commands[0] == "python examples/own_model.py own"
    program: dict[str, Any] = {"__name__": "example"}
    shorter = example.read_text().replace("in range(8):", "in range(4):")
    assert shorter != example.read_text()
    exec(compile(shorter, example, "exec"), program)
    program["main"](Path("own"))
    assert commands[1].endswith(" --seconds 30")
    parm(commands[1].removeprefix("parm ").removesuffix("--seconds 30") + "--epochs 1")
    parm(commands[2].removeprefix("parm "))
    assert some(open_bundle("own/bundle").manifest.accuracy).available_accuracy > 0.9
    assert commands[3] == "parm serve own/bundle --instances 4"


# Refusals and warnings


@pytest.mark.parametrize(
    ("inputs", "arguments", "reason"),
    [
        (ROWS, "--k 32", "there are 60 inputs in rows.npy, too few: give 96 or more"),
        (ROWS, "--encoder sum", "could not tell the slots apart"),
        (1e36 * np.abs(ROWS), "", "gives NaN or infinite values"),
        (ROWS, "--out /proc/bundle", "nothing can be written to /proc"),
    ],
)
def test_inputs_and_options_that_do_not_fit_are_refused(
    parm: Parm, tmp_path: Path, inputs: NDArray[np.float32], arguments: str, reason: str
) -> None:
    linear_model(tmp_path / "model.onnx", (6,), (3,), np.full((6, 3), 1e3, np.float32))
    np.save("rows.npy", inputs)
    command = "parity --model model.onnx --inputs rows.npy --out bundle --network mlp "
    assert reason in parm(command + arguments, code=2)
    assert not (tmp_path / "bundle").exists()


class Rooted(nn.Module):
    """It predicts NaN for some rows."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.sqrt()


def test_models_that_nothing_can_be_learned_from_are_refused(tmp_path: Path) -> None:
    constant = nn.Linear(6, 3)
    nn.init.zeros_(constant.weight)
    with pytest.raises(DataError, match="predicts the same for all inputs"):
        train_parity(constant, STACK, ROWS, tmp_path / "b", network="linear")
    with pytest.raises(DataError, match="predicts NaN or infinite values"):
        train_parity(Rooted(), STACK, ROWS, tmp_path / "b", network="linear")


def diverged(takes: Shape, gives: Shape) -> nn.Module:
    layer = nn.Linear(prod(takes), prod(gives))
    nn.init.constant_(layer.weight, float("nan"))
    return nn.Sequential(nn.Flatten(), layer, nn.Unflatten(1, gives))


class Diverging(nn.Module):
    """Learns for an epoch, and is not finite from the first step of the next one on."""

    def __init__(self, input_shape: Shape, output_shape: Shape) -> None:
        super().__init__()
        self.layer = nn.Linear(input_shape[0], output_shape[0] * output_shape[1])
        self.shape, self.judged, self.stepped = output_shape, False, False

    def train(self, mode: bool = True) -> "Diverging":
        self.judged = self.judged or (not mode and self.stepped)
        return super().train(mode)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.stepped = self.stepped or self.training
        outputs: torch.Tensor = self.layer(rows).unflatten(1, self.shape)
        return outputs * float("nan") if self.training and self.judged else outputs


def test_a_training_that_diverges_ends_at_its_best_epoch_or_writes_nothing(tmp_path: Path) -> None:
    ten, model = TrainingOptions(epochs=10, device="cpu"), nn.Linear(6, 3)
    fitted = train_parity(model, STACK, ROWS, tmp_path / "b", ten, network=Diverging).fitted
    assert fitted.diverged
    assert (fitted.best_epoch, fitted.epochs) == (1, 2)
    with pytest.raises(TrainingError, match="the training diverged"):
        train_parity(model, STACK, ROWS, tmp_path / "c", network=diverged)
    assert not (tmp_path / "c").exists()
