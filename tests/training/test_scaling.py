"""Stand-ins of a model whose queries and predictions are in units of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from own_models import STACK
from parity_models.codes import Code, CodeSpec
from parity_models.evaluation.outputs import deployed_predictor
from parity_models.models.envelope import channel_axis
from parity_models.training import TrainingOptions
from parity_models.training.networks import parity_network
from parity_models.training.problems import Scaled, scaled
from trainings import evaluate, train_backup, train_parity

Shape = tuple[int, ...]
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


def test_one_slot_is_a_scaled_network_for_one_query() -> None:
    torch.manual_seed(1)
    shape, code = (2, 9, 11), CodeSpec("stack", "separate", 3)
    network = parity_network("resnet-small", Code(code, shape, (10,))).make()
    stacked = (3 * shape[0], *shape[1:])
    inputs, targets = 100 * torch.randn(16, *stacked), 100 * torch.randn(16, 3, 10)
    module = scaled(network, inputs, targets, channel_axis(stacked))
    assert isinstance(module, Scaled)
    module(inputs)
    slot = module.eval().slot().eval()
    with torch.no_grad():
        torch.testing.assert_close(slot(inputs[:, : shape[0]]), module(inputs)[:, 0])


class Blurred(nn.Module):
    """Maps that vary within, hardly at one edge, and not at all at the other."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        share = torch.tensor([1e-5, 1, 1, 1, 1, 1, 1, 0])
        blurred = nn.functional.avg_pool2d(pictures, 3, 1, 1).mean(dim=1, keepdim=True)
        return 3 + 20 * blurred * share


def layers(takes: Shape, gives: Shape) -> nn.Module:
    """Convolutions, which know of no place but the edges."""
    return nn.Sequential(
        nn.Conv2d(takes[0], 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, gives[0], 3, padding=1)
    )


@pytest.mark.slow
def test_maps_that_hardly_vary_at_an_edge_are_learned(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).normal(size=(600, 3, 8, 8)).astype(np.float32)
    settings, network = TrainingOptions(epochs=12), f"{__name__}:layers"
    bundle = train_backup(Blurred(), network, pictures, tmp_path / "b", settings, metric="r2")
    right = deployed_predictor(bundle)(pictures)
    assert (evaluate(bundle, pictures, right, metric="r2").backup_accuracy or 0) > 0.9
