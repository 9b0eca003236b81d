"""Recipes: the optimiser, effort and style that a network is trained with."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from math import ceil, cos, pi
from typing import Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from parity_models.codes import Code, CodeSpec
from parity_models.errors import TrainingError
from parity_models.models.networks import MLP, Effort, Network, SmallResNet
from parity_models.models.networks.queried import Shape

RunOptions = dict[str, str | int | float | bool]
"""All that determines a run's result besides chance, by name."""

LEAST_STEPS, LEAST_STEPS_PER_EPOCH = 2000, 16
"""Steps that a run and an epoch take by default, if the data is so small that they would be few."""

WARM_UP = 0.2
"""The share of the budget after which the learning rate is reached."""

SUMS_EPOCHS = 4
"""Learning sums of predictions takes this many times as many epochs as learning each apart."""

PUBLISHED_ENCODERS = ("sum", "concatenation")

Style = Literal["distilled", "published"]
"""The way parity models learn: from decoded predictions, or as in the publication."""


@dataclass(frozen=True)
class Budget:
    """The end of training: after `epochs` or `seconds`, whichever comes first."""

    epochs: int | None = None
    seconds: float | None = None

    def spent(self, epochs: float, seconds: float) -> float:
        """Return the share of the budget that is used up, from 0 to 1."""
        by_epochs = epochs / self.epochs if self.epochs is not None else 0.0
        by_seconds = seconds / self.seconds if self.seconds is not None else 0.0
        return min(1.0, max(by_epochs, by_seconds))


@dataclass(frozen=True)
class Recipe(Effort):
    """The settings of training a network: AdamW with an annealed learning rate or, in the published
    `style`, Adam with a constant one."""

    style: Style = "distilled"

    @property
    def options(self) -> RunOptions:
        """The part of the recipe that determines a run's result, by name."""
        names = ("batch", "learning_rate", "weight_decay", "mirror", "style")
        return {name: value for name, value in asdict(self).items() if name in names}

    def optimizer(self, weights: Iterable[nn.Parameter]) -> Optimizer:
        """Return the optimiser of `weights`."""
        kind = torch.optim.Adam if self.style == "published" else torch.optim.AdamW
        return kind(weights, weight_decay=self.weight_decay, fused=True)

    def rate_at(self, spent: float) -> float:
        """Return the learning rate when `spent` (0 to 1) of the budget is used up.

        It warms up, then goes down along half a cosine (one-cycle: Smith, Topin, 2018). Both follow
        the share of the budget, so that a run limited in time anneals completely whatever the
        machine's speed.
        """
        if self.style == "published":
            return self.learning_rate
        if spent < WARM_UP:
            return self.learning_rate * (0.04 + 0.96 * spent / WARM_UP)
        through = (spent - WARM_UP) / (1 - WARM_UP)
        return self.learning_rate * 0.5 * (1 + cos(pi * through))

    def steps_per_epoch(self, items: int) -> int:
        """Return the number of batches of an epoch over `items`; small data gets small batches."""
        return min(items, max(LEAST_STEPS_PER_EPOCH, ceil(items / self.batch)))

    def budget(self, steps_per_epoch: int) -> Budget:
        """Return how long to train by default."""
        return Budget(epochs=max(self.epochs, ceil(LEAST_STEPS / steps_per_epoch)))


def recipe_for(
    kind: type[Network] | None, use: Literal["deployed", "parity"], inputs: Shape
) -> Recipe:
    """Return the recipe of a network as a deployed model or a backup of one, or as a parity model.

    A network without settings, as a function of the user's own, gets what suits its inputs.
    """
    usual = SmallResNet if len(inputs) == 3 else MLP
    effort = getattr(kind, use, None) or getattr(usual, use)
    return Recipe(**vars(effort))


def check_recipe(style: str, spec: CodeSpec) -> None:
    """Raise TrainingError for another style, and for a code that the paper does not have."""
    if style not in get_args(Style):
        raise TrainingError(
            f"no recipe is called {style!r}; there are {', '.join(get_args(Style))}"
        )
    published = spec.encoder in PUBLISHED_ENCODERS and spec.decoder == "subtraction"
    if style == "published" and not published:
        raise TrainingError(
            f"the published recipe is for {' and '.join(PUBLISHED_ENCODERS)} with subtraction, not "
            f"{spec.encoder} with {spec.decoder}; leave --recipe out for the best known here"
        )


def parity_recipe(recipe: Recipe, style: str, code: Code) -> Recipe:
    """Return `recipe` for a code, or in the published style (Kosaian et al., SOSP 2019, 4.1).

    Raises TrainingError as `check_recipe` does.
    """
    check_recipe(style, code.spec)
    if style == "published":
        published = replace(as_published(recipe), epochs=150)
        return published if code.k == 2 else replace(published, batch=32)
    if not code.decoder.sums:
        return recipe
    # Sums of predictions are never learned to the end; those of mirrored queries are more.
    return replace(recipe, epochs=SUMS_EPOCHS * recipe.epochs, mirror=False)


def as_published(recipe: Recipe) -> Recipe:
    """Return `recipe` with the paper's optimiser and batches (section 4.1), nothing mirrored."""
    return replace(
        recipe, batch=64, learning_rate=1e-3, weight_decay=1e-5, mirror=False, style="published"
    )


def draw_as_published(layer: nn.Module) -> None:
    """Draw a layer's weights as the paper's training code does."""
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
    elif isinstance(layer, nn.Conv1d | nn.Conv2d):
        nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("relu"))
    else:
        return
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
