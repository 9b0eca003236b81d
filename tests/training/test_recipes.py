"""Recipes: how long and at which rates is learned, as usual or as published."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from own_models import DIGITS, STACK
from parity_models.codes import CodeSpec
from parity_models.errors import TrainingError
from parity_models.tasks import find_task
from parity_models.training import TrainingOptions
from parity_models.training.recipes import Budget, as_published, draw_as_published, recipe_for
from parity_models_lab.deployed import train_deployed
from trainings import Train, evaluate

pytestmark = pytest.mark.slow


def test_the_tighter_of_two_limits_counts() -> None:
    budget = Budget(epochs=10, seconds=100)
    assert budget.spent(5, 20) == 0.5
    assert budget.spent(1, 80) == 0.8
    assert budget.spent(11, 0) == 1


def test_the_learning_rate_warms_up_and_ends_at_zero_or_stays_as_published() -> None:
    usual = replace(recipe_for(None, "deployed", (6,)), learning_rate=1.0)
    rates = [usual.rate_at(spent) for spent in np.linspace(0, 1, 101)]
    assert max(rates) == rates[20] == 1
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[100] == pytest.approx(0)
    published = as_published(usual)
    assert {published.rate_at(spent) for spent in np.linspace(0, 1, 11)} == {1e-3}


def test_the_published_recipe_trains_published_codes(train: Train) -> None:
    outcome = train(CodeSpec("sum", "subtraction", 2), recipe="published", epochs=60)
    training = outcome.manifest.parity_training
    assert training is not None
    assert training.recipe["style"] == "published"
    assert training.recipe["batch"] == 64
    accuracy = evaluate(outcome, DIGITS.test.inputs, DIGITS.test.labels)
    assert accuracy.degraded_accuracy is not None
    assert accuracy.degraded_accuracy > 0.6


def test_published_weights_are_drawn_as_the_paper_s_code_draws_them() -> None:
    convolution, normalisation, full = nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.Linear(200, 100)
    nn.Sequential(convolution, normalisation, full).apply(draw_as_published)
    assert float(full.weight.std()) == pytest.approx(0.01, rel=0.1)
    assert float(convolution.weight.abs().max()) <= 2**0.5 * (6 / (9 * (16 + 32))) ** 0.5
    for layer in (full, convolution):
        assert layer.bias is not None
        assert not layer.bias.any()
    assert bool((normalisation.weight == 1).all())


def test_a_deployed_model_may_be_trained_as_published(tmp_path: Path) -> None:
    outcome = train_deployed(
        find_task("digits"),
        DIGITS,
        "mlp",
        tmp_path / "F",
        TrainingOptions(epochs=1),
        recipe="published",
    )
    training = outcome.manifest.deployed_training
    assert training is not None
    assert training.recipe["style"] == "published"
    assert training.recipe["weight_decay"] == 1e-5
    assert training.recipe["batch"] == 64
    with pytest.raises(TrainingError, match="no recipe is called 'secret'; there are usual"):
        train_deployed(find_task("digits"), DIGITS, "mlp", tmp_path / "F", recipe="secret")


@pytest.mark.parametrize(
    ("spec", "recipe", "reason"),
    [
        (STACK, "published", "for sum and concatenation with subtraction"),
        (CodeSpec("concatenation", "separate", 2), "published", "leave --recipe out"),
        (STACK, "secret", "no recipe is called 'secret'; there are distilled, published"),
    ],
    ids=str,
)
def test_recipes_that_cannot_be_are_refused(
    train: Train, spec: CodeSpec, recipe: str, reason: str
) -> None:
    with pytest.raises(TrainingError, match=reason):
        train(spec, recipe=recipe, epochs=1)
