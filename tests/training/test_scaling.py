"""Stand-ins of a model whose queries and predictions are in units of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from own_models import STACK
from parity_models.codes import CodeSpec
from parity_models.evaluation.outputs import deployed_predictor
from parity_models.training import TrainingOptions
from trainings import evaluate, train_parity

SCALES = np.array([1e-2, 1, 30, 4e3, 0.5, 200])
OFFSETS = np.array([0, -5, 1e3, 1e4, 7, 0])
RAW = (np.random.default_rng(0).normal(size=(1200, 6)) * SCALES + OFFSETS).astype(np.float32)


class Prices(nn.Module):
    """Scales its inputs by itself, as exported pipelines do, and predicts prices."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = (rows - torch.tensor(OFFSETS).float()) / torch.tensor(SCALES).float()
        return 2e5 + 1e5 * rows @ torch.linspace(-1, 1, 12).reshape(6, 2)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [STACK, CodeSpec("sum", "subtraction", 2), None], ids=str)
def test_values_of_any_scale_are_learned(spec: CodeSpec | None, tmp_path: Path) -> None:
    settings = TrainingOptions(epochs=80)
    bundle = train_parity(
        Prices(), spec, RAW, tmp_path / "p", settings, network="linear", metric="r2"
    )
    accuracy = evaluate(bundle, RAW, deployed_predictor(bundle)(RAW), metric="r2")
    found = accuracy.degraded_accuracy if spec else accuracy.backup_accuracy
    assert found is not None
    assert found > 0.95
