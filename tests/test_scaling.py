"""Imitators of a model whose queries and predictions are in units of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from parity_models.codes import CodeSpec
from parity_models.evaluation import evaluate
from parity_models.evaluation.predictor import predictor
from parity_models.models.networks import MLP, Linear
from parity_models.training import Settings, train_backup, train_parity
from parity_models.training.scaling import Scaled, plain, scaled

SCALES = np.array([1e-2, 1, 30, 4e3, 0.5, 200])
OFFSETS = np.array([0, -5, 1e3, 1e4, 7, 0])
RAW = (np.random.default_rng(0).normal(size=(1200, 6)) * SCALES + OFFSETS).astype(np.float32)


class Prices(nn.Module):
    """Scales its inputs by itself, as exported pipelines do, and predicts prices."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        rows = (rows - torch.tensor(OFFSETS).float()) / torch.tensor(SCALES).float()
        return 2e5 + 1e5 * rows @ torch.linspace(-1, 1, 12).reshape(6, 2)


@pytest.mark.parametrize("code", [("stack", "separate"), ("sum", "subtraction")])
def test_queries_and_predictions_of_any_scale_are_learned(
    code: tuple[str, str], tmp_path: Path
) -> None:
    spec = CodeSpec(*code, 2)
    settings = Settings(epochs=80)
    bundle = train_parity(
        Prices(), spec, RAW, tmp_path / "p", settings, network="linear", metric="r2"
    ).bundle
    right = predictor(bundle.deployed_path)(RAW)
    accuracy = evaluate(bundle, RAW, right, metric="r2")
    assert accuracy.degraded_accuracy is not None
    assert accuracy.degraded_accuracy > 0.95
    backup = train_backup(bundle, "linear", RAW, tmp_path / "b", settings, metric="r2").bundle
    measured = evaluate(backup, RAW, right, metric="r2").backup_accuracy
    assert measured is not None
    assert measured > 0.95


@pytest.mark.parametrize("network", [Linear((6,), (2, 3)), MLP((6,), (2, 3))])
def test_scaling_moves_into_the_first_and_the_last_layer(network: nn.Module) -> None:
    rows = torch.from_numpy(RAW)
    targets = 1e4 * torch.randn(len(rows), 2, 3) + 7e4
    module = scaled(network, rows, targets)
    assert isinstance(module, Scaled)
    moved = plain(module, (6,))
    assert type(moved) is type(network)
    torch.testing.assert_close(moved(rows), module(rows), rtol=1e-3, atol=1.0)


def test_what_is_scaled_already_is_left_alone() -> None:
    network, pictures = nn.Flatten(), torch.rand(50, 3, 8, 8)
    assert scaled(network, pictures, None) is network
    module = scaled(network, 255 * pictures, None)
    assert isinstance(module, Scaled)
    assert module.shift.shape == (3, 1, 1)
    assert plain(module, (3, 8, 8)) is module
    inside = module.network(module(255 * pictures))
    assert float(inside.std()) == pytest.approx(1, abs=0.05)


def test_a_feature_that_never_varies_is_only_shifted() -> None:
    rows = torch.cat([torch.randn(90, 1), torch.full((90, 1), 1234.5)], dim=1)
    module = scaled(nn.Flatten(), rows, None)
    assert isinstance(module, Scaled)
    assert module(rows)[:, 1].abs().max() < 1e-3
    assert float(module.inverse[1]) == 1


@pytest.mark.parametrize(
    ("shape", "kept"), [((4, 60), (4, 1)), ((60, 4), (1, 4)), ((3, 9, 9), (3, 1, 1)), ((5,), (5,))]
)
def test_each_channel_has_a_scale(shape: tuple[int, ...], kept: tuple[int, ...]) -> None:
    module = scaled(nn.Flatten(), 100 * torch.randn(40, *shape), None)
    assert isinstance(module, Scaled)
    assert module.shift.shape == module.inverse.shape == kept
