"""Parity models are trained as published, to compare with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from own_models import DIGITS, STACK
from parity_models.codes import CodeSpec
from parity_models.errors import TrainingError
from parity_models.models.networks import MLP
from parity_models.training import TrainingOptions
from parity_models.training.networks import recipe_for
from parity_models_lab.published import (
    as_published,
    check_published,
    draw_weights,
    published_network,
)
from trainings import evaluate, train_parity


@pytest.mark.slow
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
