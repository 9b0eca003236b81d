"""The lab's networks are built by name, and compute the same once they are exported."""

import math

import numpy as np
import pytest
import torch

import parity_models_lab.published  # noqa: F401  # registers them
from onnx_models import output_of
from parity_models.errors import TrainingError
from parity_models.models.export import export, floats
from parity_models.models.networks import build_network
from parity_models.models.onnx_model import OnnxModel

pytestmark = pytest.mark.slow

Shape = tuple[int, ...]


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "grid"),
    [
        ("lenet5", (1, 28, 28), (10,), (1, 1)),
        ("lenet5", (3, 12, 17), (4, 10), (1, 1)),
        ("vgg11@0.03", (3, 32, 24), (3, 10), (1, 3)),
    ],
)
def test_they_compute_the_same_in_onnx_runtime(
    name: str, inputs: Shape, outputs: Shape, grid: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    network = build_network(name, inputs, outputs, grid)
    network(torch.randn(16, *inputs))
    model = OnnxModel(export(network, [floats(inputs)]))
    batch = torch.randn(5, *inputs)
    with torch.no_grad():
        expected = network.eval()(batch).numpy()
    assert expected.shape == (5, *outputs)
    np.testing.assert_allclose(output_of(model, batch.numpy()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lenet5", 61_706),
        # As torchvision's, with a 3x3 stem for one channel and ten classes.
        ("resnet152", 60_192_808 - 2_049_000 + 20_490 - 64 * (3 * 49 - 9)),
    ],
)
def test_they_have_their_published_size(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = build_network(name, (1, 28, 28), (10,))
    assert sum(math.prod(p.shape) for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "inputs", "reason"),
    [
        ("lenet5", (1, 8, 8), "at least 12x12"),
        ("lenet5", (784,), "takes images"),
        ("vgg11", (3, 7, 8), "at least 8x8"),
    ],
)
def test_networks_that_cannot_take_the_inputs_say_so(name: str, inputs: Shape, reason: str) -> None:
    with pytest.raises(TrainingError, match=reason):
        build_network(name, inputs, (10,))
