"""The lab's networks are built by name, and compute the same once they are exported."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import parity_models_lab.published  # noqa: F401  # registers them
from onnx_models import output_of
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.codes import CodeSpec
from parity_models.errors import TrainingError
from parity_models.training import TrainingOptions
from parity_models.training.export import export, floats
from parity_models.training.network_plans import recipe_for
from parity_models.training.networks import MLP, build_network
from parity_models_lab.published import (
    as_published,
    check_published,
    draw_weights,
    published_network,
)
from trainings import DIGITS, STACK, evaluate, train_parity

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


# The published training


def test_the_published_recipe_trains_published_codes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    outcome = train_parity(
        model,
        CodeSpec("sum", "subtraction", 2),
        DIGITS.train.inputs,
        tmp_path / "bundle",
        TrainingOptions(epochs=20),
        network="mlp",
        plan=published_network,
    )
    training = outcome.manifest.parity_training
    assert training is not None
    assert (training.recipe["style"], training.recipe["batch"]) == ("published", 64)
    predictions = model(torch.from_numpy(DIGITS.test.inputs)).argmax(-1).numpy()
    accuracy = evaluate(outcome, DIGITS.test.inputs, predictions)
    assert accuracy.degraded_accuracy is not None
    assert accuracy.degraded_accuracy > 0.6


def test_training_is_that_of_the_papers_code() -> None:
    published = as_published(recipe_for(MLP, "parity", (6,)))
    assert {published.rate_at(spent) for spent in np.linspace(0, 1, 11)} == {1e-3}
    convolution, normalisation, full = nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.Linear(200, 100)
    nn.Sequential(convolution, normalisation, full).apply(draw_weights)
    assert float(full.weight.std()) == pytest.approx(0.01, rel=0.1)
    assert float(convolution.weight.abs().max()) <= 2**0.5 * (6 / (9 * (16 + 32))) ** 0.5
    for layer in (full, convolution):
        assert layer.bias is not None
        assert not layer.bias.any()
    assert bool((normalisation.weight == 1).all())


def test_codes_that_the_paper_does_not_have_are_refused() -> None:
    for spec in (STACK, CodeSpec("concatenation", "separate", 2)):
        with pytest.raises(TrainingError, match="for sum and concatenation with subtraction"):
            check_published(spec)
