"""Networks are placed where, and as, their gradients are right."""

import sys
from subprocess import run

import pytest
import torch
from torch import nn

from parity_models.training.device import NARROW, place

CPU = torch.device("cpu")

TRAINED = """
import torch
from parity_models.models.networks import build_network
from parity_models.training.device import place

torch.set_num_threads(2)
for name in ("resnet-small@0.5", "resnet-small@0.7"):
    print(name, flush=True)
    network = place(build_network(name, (3, 32, 32), (10,)), torch.device("cpu")).train()
    for rows in (127, 63):
        network(torch.randn(rows, 3, 32, 32)).square().mean().backward()
"""


@pytest.mark.slow
def test_narrow_residual_networks_are_trained_on_threads_without_a_crash() -> None:
    ended = run([sys.executable, "-c", TRAINED], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize(("channels", "last"), [(NARROW - 1, False), (NARROW, True)])
def test_channels_are_last_unless_a_strided_convolution_has_few(channels: int, last: bool) -> None:
    first = nn.Conv2d(3, channels, 3)
    place(nn.Sequential(first, nn.Conv2d(channels, 2 * channels, 1, stride=2)), CPU)
    assert first.weight.is_contiguous(memory_format=torch.channels_last) == last
