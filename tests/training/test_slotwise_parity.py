"""Stacked images and sequences have a parity model that answers each: which network it is, how it
begins, and one slot of it."""

import pytest
import torch
from torch import nn

from parity_models.codes import Code, CodeSpec
from parity_models.errors import TrainingError
from parity_models.models.networks import MLP, SequenceResNet, SmallResNet
from parity_models.models.networks.queried import Shape
from parity_models.models.networks.slotwise import Slotwise
from parity_models.training.distillation import calibrate_last_layer
from parity_models.training.networks import parity_network
from parity_models.training.scaling import Scaled, channel_axis, one_slot, scaled


def stacked_network(k: int, shape: Shape) -> nn.Module:
    """The parity model of k stacked images or sequences of this shape."""
    torch.manual_seed(0)
    name = "resnet-small" if len(shape) == 3 else "resnet-1d"
    return parity_network(name, Code(CodeSpec("stack", "separate", k), shape, (10,))).make()


@pytest.mark.parametrize(
    ("spec", "network", "expected"),
    [
        (CodeSpec("stack", "separate", 2), "resnet-small", Slotwise),
        (CodeSpec("stack", "subtraction", 2), "resnet-small", SmallResNet),
        (
            CodeSpec("stack", "separate", 2, encoder_options={"axis": 1}),
            "resnet-small",
            SmallResNet,
        ),
        (CodeSpec("concatenation", "separate", 2), "resnet-small", SmallResNet),
    ],
    ids=str,
)
def test_it_is_the_network_for_stacked_images_with_separate_outputs(
    spec: CodeSpec, network: str, expected: type[nn.Module]
) -> None:
    assert isinstance(parity_network(network, Code(spec, (1, 9, 9), (10,))).make(), expected)


def test_images_too_small_to_be_folded_are_seen_together() -> None:
    assert isinstance(stacked_network(8, (1, 6, 6)), SmallResNet)


@pytest.mark.parametrize(
    ("spec", "network", "expected"),
    [
        (CodeSpec("stack", "separate", 2), "resnet-1d", Slotwise),
        (CodeSpec("stack", "separate", 2), "mlp", MLP),
        (CodeSpec("sum", "subtraction", 2), "resnet-1d", SequenceResNet),
    ],
    ids=str,
)
def test_it_is_the_network_for_stacked_sequences_with_separate_outputs(
    spec: CodeSpec, network: str, expected: type[nn.Module]
) -> None:
    assert isinstance(parity_network(network, Code(spec, (3, 40), (10,))).make(), expected)


def test_at_most_four_pixels_are_folded() -> None:
    network = stacked_network(10, (3, 32, 32))
    assert isinstance(network, Slotwise)
    assert network.block == (2, 2)
    assert network(torch.zeros(2, 30, 32, 32)).shape == (2, 10, 10)


def test_sequences_too_short_to_be_folded_are_refused() -> None:
    code = Code(CodeSpec("stack", "separate", 8), (3, 20), (10,))
    with pytest.raises(TrainingError, match="at least 8 steps here"):
        parity_network("resnet-1d", code).make()


def test_calibrated_it_gives_every_slot_the_scale_of_the_targets() -> None:
    network = stacked_network(2, (1, 16, 16))
    inputs, targets = torch.randn(64, 2, 16, 16), 5 + 3 * torch.randn(64, 2, 10)
    calibrate_last_layer(network, inputs, targets)
    outputs = network.train()(inputs)
    torch.testing.assert_close(outputs.mean((0, 1)), targets.mean((0, 1)))
    torch.testing.assert_close(outputs.flatten(0, 1).std(0), targets.flatten(0, 1).std(0))


@pytest.mark.parametrize("shape", [(2, 9, 11), (2, 25), (25, 2)])
@pytest.mark.parametrize("units", [1.0, 100.0])
def test_one_slot_is_a_network_for_one_query(shape: Shape, units: float) -> None:
    torch.manual_seed(1)
    network = stacked_network(3, shape)
    stacked = (3 * shape[0], *shape[1:])
    inputs, targets = units * torch.randn(16, *stacked), units * torch.randn(16, 3, 10)
    if units != 1:
        network = scaled(network, inputs, targets, channel_axis(stacked))
        assert isinstance(network, Scaled)
    network(inputs)
    slot = one_slot(network.eval())
    assert slot is not None
    slot.eval()
    with torch.no_grad():
        torch.testing.assert_close(slot(inputs[:, : shape[0]]), network(inputs)[:, 0])
    assert one_slot(nn.Linear(3, 3)) is None
