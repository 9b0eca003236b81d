"""One network answers every stacked image or sequence: on its own, from all of it, at the cost of
one."""

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from onnx_models import output_of
from parity_models.models.export import export, floats
from parity_models.models.networks import build_network
from parity_models.models.networks.slotwise import Shape, Slotwise
from parity_models.models.onnx_model import OnnxModel


def slotwise(k: int, shape: Shape) -> Slotwise:
    torch.manual_seed(0)
    name = "resnet-small" if len(shape) == 3 else "resnet-1d"
    return Slotwise(k, shape, lambda folded: build_network(name, folded, (10,)))


def settled(network: nn.Module, *shape: int) -> nn.Module:
    """With running statistics that are not the defaults, in evaluation mode."""
    network(torch.randn(16, *shape))
    return network.eval()


@pytest.mark.parametrize(
    ("k", "shape"),
    [(2, (1, 28, 28)), (3, (3, 9, 11)), (8, (1, 28, 28)), (2, (3, 40)), (3, (40, 3))],
)
@pytest.mark.slow
def test_it_computes_the_same_in_onnx_runtime_for_any_batch(k: int, shape: Shape) -> None:
    stacked = (k * shape[0], *shape[1:])
    network = settled(slotwise(k, shape), *stacked)
    model = OnnxModel(export(network, [floats(stacked)]))
    for rows in (1, 2, 7):
        batch = torch.randn(rows, *stacked)
        with torch.no_grad():
            expected = network(batch).numpy()
        assert expected.shape == (rows, k, 10)
        np.testing.assert_allclose(output_of(model, batch.numpy()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 9, 11), (2, 25), (25, 2)])
def test_every_slot_depends_on_every_value_of_its_own_query_alone(shape: Shape) -> None:
    network = settled(slotwise(3, shape), 3 * shape[0], *shape[1:])
    stacked = torch.randn(1, 3 * shape[0], *shape[1:], requires_grad=True)
    outputs: Tensor = network(stacked)
    for slot in range(3):
        (gradient,) = torch.autograd.grad(outputs[0, slot].sum(), stacked, retain_graph=True)
        for query, part in enumerate(gradient[0].split(shape[0])):
            assert bool(part.any()) == (query == slot)
            assert bool(part.all()) == (query == slot)


def test_it_can_start_as_a_network_that_sees_every_image_shrunk() -> None:
    torch.manual_seed(1)
    single = settled(build_network("resnet-small", (3, 16, 16), (10,)), 3, 16, 16)
    network = slotwise(2, (3, 16, 16)).eval()
    network.start_from(single, first=True)
    images = torch.randn(5, 2, 3, 16, 16)
    shrunk = images.unflatten(-1, (8, 2)).mean(dim=-1)
    with torch.no_grad():
        outputs = network(images.flatten(1, 2))
        expected = torch.stack([single(shrunk[:, slot]) for slot in range(2)], dim=1)
    torch.testing.assert_close(outputs, expected)


def test_a_start_without_the_first_layer_differs_in_it_alone() -> None:
    torch.manual_seed(1)
    single = build_network("resnet-small", (1, 16, 16), (10,))
    network = slotwise(2, (1, 16, 16))
    own = {name: value.clone() for name, value in network.network.state_dict().items()}
    network.start_from(single, first=False)
    for name, value in network.network.state_dict().items():
        theirs = single.state_dict()[name]
        expected = own[name] if theirs.shape != value.shape else theirs
        torch.testing.assert_close(value, expected)
    assert not torch.equal(own["head.weight"], network.network.state_dict()["head.weight"])


def test_sequences_are_folded_in_time_alone() -> None:
    single = settled(build_network("resnet-1d", (3, 40), (10,)), 3, 40)
    network = slotwise(4, (3, 40)).eval()
    assert network.block == (1, 4)
    network.start_from(single, first=True)
    sequences = torch.randn(5, 4, 3, 40)
    shrunk = sequences.unflatten(-1, (10, 4)).mean(dim=-1)
    with torch.no_grad():
        outputs = network(sequences.flatten(1, 2))
        expected = torch.stack([single(shrunk[:, slot]) for slot in range(4)], dim=1)
    torch.testing.assert_close(outputs, expected)


@given(st.integers(2, 64))
def test_k_folded_images_have_about_as_many_places_as_one(k: int) -> None:
    network = Slotwise(k, (1, 64, 64), lambda folded: nn.Flatten())
    rows, columns = network.block
    assert k <= prod(network.block) < 1.5 * k + 1
    assert rows <= columns <= 2 * rows
