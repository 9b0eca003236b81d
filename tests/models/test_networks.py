"""Networks are built by name for any shapes, and compute the same once they are exported."""

import math

import numpy as np
import pytest
import torch

from onnx_models import output_of
from parity_models.errors import TrainingError
from parity_models.models.export import export, floats
from parity_models.models.networks import MLP, SequenceResNet, SmallResNet, build_network
from parity_models.models.networks.published import ResNet18
from parity_models.models.onnx_model import OnnxModel

pytestmark = pytest.mark.slow

Shape = tuple[int, ...]

BUILDS = [
    ("linear", (3, 4, 5), (2, 10), (1, 1)),
    ("mlp", (1, 28, 28), (10,), (1, 1)),
    ("mlp", (2, 8, 8), (2, 10), (1, 1)),
    ("mlp", (13,), (1,), (1, 1)),
    ("resnet-small", (1, 28, 28), (10,), (1, 1)),
    ("resnet-small", (1, 28, 28), (2, 10), (1, 2)),
    ("resnet-small", (3, 33, 20), (4, 10), (2, 2)),
    ("resnet-small", (1, 8, 8), (10,), (1, 1)),
    ("resnet-1d", (3, 50), (4,), (1, 1)),
    ("resnet-1d", (50, 3), (2, 4), (1, 1)),
    ("resnet-1d", (6, 1, 8), (1,), (1, 1)),
    ("resnet18@0.03", (1, 28, 28), (2, 10), (1, 2)),
    ("resnet18@0.03", (3, 70, 64), (4,), (1, 1)),
]


@pytest.mark.parametrize(("name", "inputs", "outputs", "grid"), BUILDS)
def test_networks_compute_the_same_in_onnx_runtime_for_any_batch(
    name: str, inputs: Shape, outputs: Shape, grid: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    network = build_network(name, inputs, outputs, grid)
    network(torch.randn(16, *inputs))  # moves the running statistics away from their defaults
    model = OnnxModel(export(network, [floats(inputs)]))
    assert network.training
    network.eval()
    for rows in (1, 2, 7):
        batch = torch.randn(rows, *inputs)
        with torch.no_grad():
            expected = network(batch).numpy()
        assert expected.shape == (rows, *outputs)
        np.testing.assert_allclose(output_of(model, batch.numpy()), expected, rtol=1e-4, atol=1e-5)


def test_exported_models_have_named_tensors_and_one_free_axis() -> None:
    model = OnnxModel(export(build_network("mlp", (1, 8, 8), (2, 10)), [floats((1, 8, 8))]))
    assert str(model.signature.input) == "'input' FP32 [1, 8, 8]"
    assert str(model.signature.output) == "'output' FP32 [2, 10]"


def test_exporting_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    network = build_network("resnet-small", (1, 8, 8), (10,))
    # Of what `to` takes, this is not in torch's stubs.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    export(network, [floats((1, 8, 8))])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mlp", 784 * 200 + 200 + 200 * 100 + 100 + 100 * 10 + 10),
        # As torchvision's, with a 3x3 stem for one channel and ten classes.
        ("resnet18", 11_689_512 - 513_000 + 5_130 - 64 * (3 * 49 - 9)),
    ],
)
def test_published_networks_have_their_published_size(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = build_network(name, (1, 28, 28), (10,))
    assert sum(math.prod(p.shape) for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "inputs", "grid", "reason"),
    [
        ("perceptron", (4,), (1, 1), "[Tt]here are linear, mlp"),
        ("resnet-small", (784,), (1, 1), "takes images"),
        ("resnet-small", (1, 3, 8), (1, 1), "at least 4x4"),
        ("resnet-small", (1, 8, 8), (3, 3), "at least 12x12"),
        ("resnet-1d", (784,), (1, 1), "takes sequences"),
        ("resnet-1d", (3, 4, 20), (1, 1), "takes sequences"),
        ("resnet-1d", (7, 3), (1, 1), "at least 8 steps"),
        ("resnet18", (784,), (1, 1), "takes images"),
        ("resnet18@0.25", (3, 28, 28), (4, 2), "at least 32x16"),
        ("resnet18@", (3, 28, 28), (1, 1), "width of resnet18 must be a number, got ''"),
        ("resnet18@nan", (3, 28, 28), (1, 1), "width of resnet18 must be above 0 and 4 or less"),
        ("resnet18@height=2", (3, 28, 28), (1, 1), "height is no option .*; it has width"),
        ("mine:Net", (784,), (1, 1), "which is not imported here"),
    ],
)
def test_networks_that_cannot_take_the_inputs_say_so(
    name: str, inputs: Shape, grid: tuple[int, int], reason: str
) -> None:
    with pytest.raises(TrainingError, match=reason):
        build_network(name, inputs, (10,), grid)


def test_the_longer_axis_of_a_sequence_is_time() -> None:
    across, down = (build_network("resnet-1d", shape, (4,)).eval() for shape in ((3, 50), (50, 3)))
    down.load_state_dict(across.state_dict())
    sequences = torch.randn(5, 3, 50)
    with torch.no_grad():
        torch.testing.assert_close(across(sequences), down(sequences.transpose(1, 2)))


def test_a_width_scales_every_layer() -> None:
    for kind in (MLP, SmallResNet, SequenceResNet, ResNet18):
        name, shape = kind.name, (3, 1, 32) if kind.name == "resnet-1d" else (3, 32, 32)
        with torch.device("meta"):
            full, half = (build_network(f"{name}@{width}", shape, (10,)) for width in (1.0, 0.5))
        layers = [
            [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
            for network in (full, half)
        ]
        for wide, narrow in zip(*layers, strict=True):
            for units in ("out_channels", "out_features"):
                if getattr(wide, units, 10) != 10:  # not the last layer's
                    assert getattr(narrow, units) * 2 == getattr(wide, units)
