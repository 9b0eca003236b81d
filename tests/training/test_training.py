"""Training reaches accuracy for every kind of code, prediction and unit, repeats exactly, and
refuses what cannot be learned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onnx_models import output_of
from parity_models.bundle.bundle import Bundle, NewModel, open_bundle, write_bundle
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.codes import CodeSpec
from parity_models.errors import BundleError, UserError
from parity_models.evaluation.outputs import deployed_predictor
from parity_models.training import Trained, TrainingOptions
from present import some
from trainings import DIGITS, STACK, Train, evaluate, train_backup, train_parity, weights

pytestmark = pytest.mark.slow

SUM = CodeSpec("sum", "subtraction", 2)


@pytest.mark.parametrize(
    ("spec", "least"),
    [
        (SUM, 0.85),
        (CodeSpec("concatenation", "separate", 2), 0.85),
        (CodeSpec("stack", "separate", 3), 0.85),
        (CodeSpec("stack", "subtraction", 2), 0.85),
        (CodeSpec("sum", "subtraction", 3, 2), 0.6),
    ],
    ids=str,
)
def test_models_of_every_code_reconstruct(train: Train, spec: CodeSpec, least: float) -> None:
    outcome = train(spec, epochs=30)
    bundle = open_bundle(outcome.path)
    assert len(bundle.manifest.parity) == spec.r
    accuracy = evaluate(bundle, DIGITS.test.inputs, DIGITS.test.labels)
    degraded = some(accuracy.degraded_accuracy)
    assert degraded > least
    # The score that training chose the epoch by is A_d, on other queries.
    assert abs(degraded - outcome.fitted.score) < 0.08


def test_the_same_seed_gives_the_same_weights_and_keeps_randomness(train: Train) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    once, again = train(epochs=3, name="once"), train(epochs=3, name="again")
    torch.testing.assert_close(torch.rand(3), expected)
    other = train(epochs=3, name="other", seed=1)
    assert weights(once) == weights(again) != weights(other)


# Refusals


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"epochs": 0}, "epochs must be a whole number, at least 1"),
        ({"seconds": float("nan")}, "seconds must be a number, above 0"),
        ({"device": "cuda:99"}, "leave it out"),
        ({"network": "text"}, "text takes one input of ids"),
    ],
)
def test_wrong_settings_are_refused(train: Train, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        train(**settings)


def test_weights_of_another_network_are_refused(deployed: Trained, tmp_path: Path) -> None:
    for content in (b"noise", (deployed.path / "deployed.safetensors").read_bytes()):
        wrong: Bundle = write_bundle(
            tmp_path / "wrong",
            deployed=NewModel(deployed.path / "deployed.onnx", "linear"),
            files={"deployed.safetensors": content},
        )
        with pytest.raises(BundleError, match="does not fit the network linear"):
            train_parity(wrong, STACK, DIGITS.train.inputs, tmp_path / "bundle")


# Kinds of predictions


class Normal(nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize(
    ("last", "kind"), [(nn.Softmax(dim=-1), "probabilities"), (Normal(), "embeddings")]
)
def test_answers_are_valid_ones_of_the_kind(last: nn.Module, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 9), last)
    rows = np.random.default_rng(1).normal(size=(900, 6)).astype(np.float32)
    settings, out = TrainingOptions(epochs=25), tmp_path / "b"
    outcome = train_parity(module, STACK, rows, out, settings, network="linear")
    assert some(outcome.manifest.parity_training).recipe["output_kind"] == kind
    backed = train_backup(outcome, "linear", rows, out, settings)
    answers = output_of(OnnxModel(backed.path / "backup.onnx"), rows[:40])
    parity = output_of(OnnxModel(backed.path / "parity-0.onnx"), rows[:40].reshape(20, 12))
    expected = module(torch.from_numpy(rows[:40])).detach().numpy()
    for given in (answers, parity.reshape(40, 9)):
        if kind == "probabilities":
            assert (given >= 0).all()
            np.testing.assert_allclose(given.sum(axis=1), 1, atol=1e-4)
            assert (given.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.8
        else:
            np.testing.assert_allclose(np.linalg.norm(given, axis=1), 1, atol=1e-4)
            assert (given * expected).sum(axis=1).mean() > 0.95
    assert np.abs(answers - expected).max() < 0.2


class Box(nn.Module):
    """The box around the bright square of 5x5 in a picture of 12x12."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        places = torch.arange(12) / 12 + 1 / 24
        x, y = ((pictures.sum(dim=(1, axis)) * places).sum(dim=1) / 25 for axis in (2, 3))
        half = 2.5 / 12
        return torch.stack([x - half, y - half, x + half, y + half], dim=1)


def test_boxes_are_learned_and_reconstructed(tmp_path: Path) -> None:
    left, top = np.random.default_rng(0).integers(0, 7, (2, 900, 1, 1))
    rows, columns = np.arange(12)[:, None], np.arange(12)
    inside = (rows >= top) & (rows < top + 5) & (columns >= left) & (columns < left + 5)
    pictures, settings = inside.astype(np.float32)[:, None], TrainingOptions(epochs=40)
    bundle = train_parity(
        Box(), STACK, pictures[:800], tmp_path / "p", settings,
        network="mlp", metric="iou", hflip=True,
    )  # fmt: skip
    labels = np.concatenate([left, top, left + 5, top + 5], axis=1)[..., 0] / np.float32(12)
    accuracy = evaluate(bundle, pictures[800:], labels[800:].astype(np.float32), metric="iou")
    assert accuracy.available_accuracy > 0.99
    assert (accuracy.degraded_accuracy or 0) > 0.7


INPUTS = DIGITS.train.inputs


def test_a_backup_imitates_without_labels(deployed: Trained, tmp_path: Path) -> None:
    one, other, settings = tmp_path / "one", tmp_path / "other", TrainingOptions(epochs=20)
    coded = train_parity(deployed, STACK, INPUTS, one)
    backed = train_backup(deployed, "linear", INPUTS, other, settings)
    backup, training = some(backed.manifest.backup), some(backed.manifest.backup_training)
    assert backup.network == "linear"
    assert (training.task, training.inputs, training.epochs) == ("digits", 1080, 20)
    accuracy = evaluate(backed, DIGITS.test.inputs, DIGITS.test.labels)
    assert (accuracy.backup_accuracy or 0) > 0.9
    first = train_backup(coded, "linear", INPUTS, one, settings).manifest
    second = train_parity(backed, STACK, INPUTS, other).manifest
    assert first.parity == second.parity == coded.manifest.parity
    assert first.backup == second.backup == backup
    assert first.files[0] == second.files[0] == deployed.manifest.files[0]
    assert open_bundle(one).code() is not None


# Queries and predictions in units of their own

SCALES = np.array([1e-2, 1, 30, 4e3, 0.5, 200])
OFFSETS = np.array([0, -5, 1e3, 1e4, 7, 0])
RAW = (np.random.default_rng(0).normal(size=(1200, 6)) * SCALES + OFFSETS).astype(np.float32)


class Prices(nn.Module):
    """Scales its inputs by itself, as exported pipelines do, and predicts prices."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = (rows - torch.tensor(OFFSETS).float()) / torch.tensor(SCALES).float()
        return 2e5 + 1e5 * rows @ torch.linspace(-1, 1, 12).reshape(6, 2)


@pytest.mark.parametrize("spec", [STACK, SUM, None], ids=str)
def test_values_of_any_scale_are_learned(spec: CodeSpec | None, tmp_path: Path) -> None:
    settings = TrainingOptions(epochs=80)
    bundle = train_parity(
        Prices(), spec, RAW, tmp_path / "p", settings, network="linear", metric="r2"
    )
    accuracy = evaluate(bundle, RAW, deployed_predictor(bundle)(RAW), metric="r2")
    assert some(accuracy.degraded_accuracy if spec else accuracy.backup_accuracy) > 0.95
