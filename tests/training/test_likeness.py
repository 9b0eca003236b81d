"""What predictions are is seen in them, and what stands in for F gives valid ones of that kind."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onnx_models import output_of
from parity_models.codes import CodeSpec
from parity_models.errors import UserError
from parity_models.models.onnx_model import OnnxModel
from parity_models.tasks.metrics import choose_output_kind
from parity_models.training import TrainingOptions
from trainings import train_backup, train_parity

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=(50, 9)).astype(np.float32)
SHARES = np.exp(NUMBERS) / np.exp(NUMBERS).sum(axis=1, keepdims=True)
UNIT = NUMBERS / np.linalg.norm(NUMBERS, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("predictions", "named", "metric", "expected"),
    [
        (NUMBERS, None, None, ("logits", "top-1")),
        (NUMBERS, "numbers", None, ("numbers", "r2")),
        (NUMBERS, None, "r2", ("numbers", "r2")),
        (NUMBERS, None, "top-5", ("logits", "top-5")),
        (NUMBERS[:, :1], None, None, ("numbers", "r2")),
        (NUMBERS.reshape(50, 3, 3), None, None, ("numbers", "r2")),
        (SHARES, None, None, ("probabilities", "top-1")),
        (SHARES, "logits", None, ("logits", "top-1")),
        (SHARES, None, "r2", ("numbers", "r2")),
        (UNIT, None, None, ("embeddings", "cosine")),
        (UNIT, None, "top-1", ("logits", "top-1")),
        (SHARES[:, :4], None, "iou", ("boxes", "iou")),
    ],
)
def test_what_predictions_are_is_seen_or_told(
    predictions: Array, named: str | None, metric: str | None, expected: tuple[str, str]
) -> None:
    assert choose_output_kind(named, metric, predictions) == expected


@pytest.mark.parametrize(
    ("predictions", "named", "metric", "message"),
    [
        (NUMBERS, "probabilities", None, "are no probabilities"),
        (NUMBERS, "scores", None, "not 'scores'"),
        (NUMBERS, "embeddings", "top-1", "top-1 judges classes, and predictions are embeddings"),
        (NUMBERS, "boxes", None, "iou judges boxes"),
    ],
)
def test_what_does_not_go_together_is_said(
    predictions: Array, named: str | None, metric: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose_output_kind(named, metric, predictions)


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
    settings = TrainingOptions(epochs=25)
    spec = CodeSpec("stack", "separate", 2)
    outcome = train_parity(module, spec, rows, tmp_path / "b", settings, network="linear")
    training = outcome.manifest.parity_training
    assert training is not None
    assert training.recipe["output_kind"] == kind
    backed = train_backup(outcome, "linear", rows, tmp_path / "b", settings)
    assert backed.backup_paths
    answers = output_of(OnnxModel(backed.backup_paths[0]), rows[:40])
    parity = output_of(OnnxModel(backed.parity_paths[0]), rows[:40].reshape(20, 12))
    parity = parity.reshape(40, 9)
    expected = module(torch.from_numpy(rows[:40])).detach().numpy()
    for given in (answers, parity):
        if kind == "probabilities":
            assert (given >= 0).all()
            np.testing.assert_allclose(given.sum(axis=1), 1, atol=1e-4)
            assert (given.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.8
        else:
            np.testing.assert_allclose(np.linalg.norm(given, axis=1), 1, atol=1e-4)
            assert (given * expected).sum(axis=1).mean() > 0.95
    assert np.abs(answers - expected).max() < 0.2
