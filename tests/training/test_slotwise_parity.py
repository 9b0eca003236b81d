"""Stacked images and sequences have a parity model that answers each: which network it is, how it
begins, and one slot of it."""

import pytest
import torch
from torch import nn

from parity_models.codes import Code, CodeSpec
from parity_models.errors import TrainingError
from parity_models.models.networks import MLP, SequenceResNet, SmallResNet, build_network
from parity_models.models.networks.slotwise import Shape, Slotwise
from parity_models.training.distillation import calibrate_last_layer
from parity_models.training.networks import named_network, parity_network
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
        # Folded eight times, the images are too small for it.
        (CodeSpec("stack", "separate", 8), "resnet-small", SmallResNet),
    ],
    ids=str,
)
def test_it_is_the_network_for_stacked_images_with_separate_outputs(
    spec: CodeSpec, network: str, expected: type[nn.Module]
) -> None:
    assert isinstance(parity_network(network, Code(spec, (1, 9, 9), (10,))).make(), expected)


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


def test_fewer_pixels_may_be_folded_than_images_are_stacked() -> None:
    code = Code(CodeSpec("stack", "separate", 10), (3, 32, 32), (10,))
    usual, finer, none = (
        parity_network(f"resnet-small@0.25{fold}", code).make()
        for fold in ("", ",fold=4", ",fold=1")
    )
    assert isinstance(usual, Slotwise)
    assert isinstance(finer, Slotwise)
    assert isinstance(none, Slotwise)
    assert (usual.block, finer.block, none.block) == ((3, 4), (2, 2), (1, 1))
    assert finer(torch.zeros(2, 30, 32, 32)).shape == (2, 10, 10)


@pytest.mark.parametrize(
    "spec", [CodeSpec("sum", "subtraction", 2), CodeSpec("concatenation", "separate", 2)], ids=str
)
def test_folding_is_refused_for_codes_whose_images_are_not_stacked(spec: CodeSpec) -> None:
    with pytest.raises(TrainingError, match="resnet-small@fold=4 is for images that are stacked"):
        parity_network("resnet-small@fold=4", Code(spec, (3, 32, 32), (10,))).make()


def test_folding_is_refused_for_single_queries() -> None:
    with pytest.raises(TrainingError, match="resnet-small@fold=2 is for parity models"):
        build_network("resnet-small@fold=2", (3, 32, 32), (10,))
    with pytest.raises(TrainingError, match="resnet-small@fold=2 is for parity models"):
        named_network("resnet-small@fold=2").build((3, 32, 32), (10,), (1, 1))


def test_sequences_too_short_to_be_folded_are_refused() -> None:
    code = Code(CodeSpec("stack", "separate", 8), (3, 40), (10,))
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
