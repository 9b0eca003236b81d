"""Where images lie on one another, the parity model sees places apart, and starts as F does."""

import pytest
import torch

from parity_models.codes import Code, CodeSpec
from parity_models.models.networks import build_network
from parity_models.training.candidates import build_models
from parity_models.training.networks import parity_network

Shape = tuple[int, ...]

SUM = CodeSpec("sum", "subtraction", 2)


@pytest.mark.parametrize(
    ("spec", "shape", "network", "places"),
    [
        (SUM, (1, 28, 28), "resnet-small", (7, 7)),
        (CodeSpec("convolution", "separate", 2), (1, 28, 28), "resnet-small", (7, 7)),
        (SUM, (1, 4, 64), "resnet-small", (1, 8)),
        (SUM, (1, 36, 400), "resnet-small", (5, 8)),
        (SUM, (1, 28, 28), "resnet18", (1, 1)),
        (SUM, (40,), "mlp", (1, 1)),
        (CodeSpec("stack", "subtraction", 2), (1, 28, 28), "resnet-small", (1, 1)),
        (CodeSpec("concatenation", "subtraction", 2), (1, 28, 28), "resnet-small", (1, 1)),
        (CodeSpec("concatenation", "separate", 4), (1, 28, 28), "resnet-small", (2, 2)),
    ],
    ids=str,
)
def test_places_are_seen_apart_where_images_lie_on_one_another(
    spec: CodeSpec, shape: Shape, network: str, places: tuple[int, int]
) -> None:
    code = Code(spec, shape, (10,))
    chosen = parity_network(network, code)
    assert chosen.places == places
    outputs = chosen.make()(torch.zeros(2, *code.parity_shape))
    assert outputs.shape == (2, *code.parity_output_shape)


def test_the_published_network_averages_its_whole_map() -> None:
    code = Code(SUM, (1, 28, 28), (10,))
    assert parity_network("resnet-small", code, "published").places == (1, 1)


@pytest.mark.parametrize("shape", [(1, 28, 28), (2, 64, 32)])
def test_a_model_that_sees_places_apart_starts_as_the_deployed_model(shape: Shape) -> None:
    deployed = build_network("resnet-small", shape, (10,)).eval()
    network = parity_network("resnet-small", Code(SUM, shape, (10,)))
    assert network.places != (1, 1)
    (parity,), started = build_models(network, 1, deployed)
    assert started
    queries = torch.randn(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(parity.eval()(queries), deployed(queries))
