"""A model that this package did not make: opened, imitated without labels, or refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from onnx_models import output_of
from own_models import DIGITS, STACK, Parm
from parity_models.evaluation.tables import slowdown
from parity_models.models.bundle import InferenceTimes, NewModel, open_bundle, write_bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.training import Callbacks, TrainingOptions
from trainings import evaluate, train_backup, train_parity

pytestmark = pytest.mark.slow


def test_one_command_leads_from_a_model_and_inputs_to_a_measured_bundle(
    parm: Parm, digits: Path, tmp_path: Path
) -> None:
    said = parm(
        "parity --model {digits}/model.onnx --inputs {digits}/inputs.npy --out bundle --k 2 "
        "--parity-network mlp --epochs 20"
    )
    assert "top-1 agreement, 120 queries" in said
    assert "ratio" in said
    assert "stand-in" in said
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.deployed.network == "own"
    assert manifest.deployed_training is None
    assert manifest.accuracy is not None
    assert manifest.accuracy.available_accuracy == 1
    assert manifest.accuracy.degraded_accuracy == manifest.accuracy.agreement
    assert manifest.accuracy.metric == "top-1 agreement"
    assert manifest.inference_times is not None
    assert manifest.inference_times.parity is not None
    assert manifest.parity_training is not None
    assert manifest.parity_training.inputs == 864  # a tenth each validates, calibrates, tests
    assert manifest.calibration["reconstruction"].queries == 60
    assert (digits / "model.onnx").read_bytes() == (tmp_path / "bundle/deployed.onnx").read_bytes()

    parm(
        "evaluate bundle --inputs {digits}/test.npy --labels {digits}/labels.npy --json right.json"
    )
    right = json.loads((tmp_path / "right.json").read_text())
    assert right["metric"] == "top-1"
    assert right["queries"] == 400
    assert right["available_accuracy"] < 1
    assert right["degraded_accuracy"] > 0.75
    parm("evaluate bundle --inputs {digits}/test.npy --json alike.json")
    alike = json.loads((tmp_path / "alike.json").read_text())
    assert alike["degraded_accuracy"] == right["agreement"]
    assert (alike["task"], alike["available_accuracy"]) == (None, 1)

    parm(
        "backup --from bundle --network linear --inputs {digits}/inputs.npy --out bundle "
        "--epochs 60"
    )
    backed = open_bundle(tmp_path / "bundle").manifest
    assert backed.accuracy is not None
    assert backed.accuracy.backup_accuracies
    assert backed.accuracy.backup_accuracies[0] > 0.9
    assert backed.inference_times is not None
    assert len(backed.inference_times.backups) == 1
    assert backed.calibration["reconstruction"] == manifest.calibration["reconstruction"]
    assert [each.level for each in backed.calibration["backup"].levels][:1] == [0.9]
    assert {each["stand_in"] for each in alike["gates"]} == {"reconstruction"}


def test_a_bundle_may_be_given_inputs_of_ones_own_for_another_code(
    parm: Parm, digits: Path, tmp_path: Path
) -> None:
    write_bundle("plain", deployed=NewModel(digits / "model.onnx", "mine"))
    parm(
        "parity --from plain --inputs {digits}/inputs.npy --out other --k 3 --encoder sum "
        "--decoder subtraction --parity-network linear --epochs 20"
    )
    accuracy = open_bundle(tmp_path / "other").manifest.accuracy
    assert accuracy is not None
    assert accuracy.agreement is not None
    assert accuracy.agreement > 0.7


class Nearest(nn.Module):
    """Two numbers per row: no classes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(rows)
        return outputs


def test_a_torch_module_is_imitated_and_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Nearest().train()
    rows = np.random.default_rng(1).normal(size=(800, 6)).astype(np.float32)
    outcome = train_parity(
        module, STACK, rows, tmp_path / "b", TrainingOptions(epochs=40), network="mlp", metric="r2"
    )
    assert module.training
    deployed = OnnxModel(outcome.deployed_path)
    expected = module(torch.from_numpy(rows[:50])).detach().numpy()
    np.testing.assert_allclose(output_of(deployed, rows[:50]), expected, rtol=1e-4, atol=1e-5)
    accuracy = evaluate(outcome, rows[:50], expected, metric="r2")
    assert accuracy.degraded_accuracy is not None
    assert accuracy.degraded_accuracy > 0.8


def test_a_path_in_python_is_an_onnx_file_or_a_bundle(digits: Path, tmp_path: Path) -> None:
    inputs = DIGITS.train.inputs
    predicted: list[int] = []
    bars = Callbacks(on_predicted=predicted.append)
    once = train_parity(
        digits / "model.onnx", STACK, inputs, tmp_path / "a", network="linear", callbacks=bars
    )
    assert sum(predicted) >= len(inputs)
    again = train_parity(str(once.path), STACK, inputs, tmp_path / "b", network="linear")
    parities = [one.manifest.parity[0].sha256 for one in (once, again)]
    assert parities[0] == parities[1]
    backed = train_backup(again, "linear", inputs, tmp_path / "c")
    assert backed.backup_paths


def test_a_parity_model_slower_than_the_deployed_model_is_told(
    digits: Path, tmp_path: Path
) -> None:
    for parity, expected in [(1.0, None), (3.0, 3.0), (None, None)]:
        bundle = write_bundle(
            tmp_path / "bundle",
            deployed=NewModel(digits / "model.onnx", "own"),
            inference_times=InferenceTimes(1.0, parity),
        )
        assert slowdown(open_bundle(bundle.path)) == expected
