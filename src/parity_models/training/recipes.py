"""What to train with: what a network says of itself, the kind of model, and the style."""

from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, get_args

from torch import nn

from parity_models.codes import Code, CodeSpec
from parity_models.errors import TrainingError
from parity_models.models.networks import MLP, Effort, Network, SmallResNet
from parity_models.models.networks.images import Shape
from parity_models.training.checkpoint import Options
from parity_models.training.schedule import Budget, Constant, OneCycle, Schedule

LEAST_STEPS = 2000
"""Steps that a run takes by default, if its data is so small that its epochs have few."""

LEAST_STEPS_PER_EPOCH = 16

Use = Literal["deployed", "parity"]

Style = Literal["distilled", "published"]
"""How parity models learn: from decoded predictions, or as in the publication."""


@dataclass(frozen=True)
class Recipe(Effort):
    """How a network is trained: `style` says what the loss compares, and which optimiser goes with
    it."""

    style: Style = "distilled"

    @property
    def schedule(self) -> Schedule:
        kind = Constant if self.style == "published" else OneCycle
        return kind(self.learning_rate, self.weight_decay)

    @property
    def options(self) -> Options:
        """What of the recipe determines a run's result, by name."""
        return {
            "batch": self.batch,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "mirror": self.mirror,
            "style": self.style,
        }

    def steps_per_epoch(self, items: int) -> int:
        """Into how many batches an epoch over `items` is cut; small data gets small batches."""
        return min(items, max(LEAST_STEPS_PER_EPOCH, ceil(items / self.batch)))

    def budget(self, steps_per_epoch: int) -> Budget:
        """How long to train by default."""
        return Budget(epochs=max(self.epochs, ceil(LEAST_STEPS / steps_per_epoch)))


SUMS_EPOCHS = 4
"""Learning sums of predictions takes this many times as many epochs as learning each apart."""

PUBLISHED_ENCODERS = ("sum", "concatenation")


def recipe_for(kind: type[Network] | None, use: Use, inputs: Shape) -> Recipe:
    """That of a network as a deployed model or a backup of one, or as a parity model.

    Where nothing is said of it, as of a function of the user's own, what suits its inputs.
    """
    usual = SmallResNet if len(inputs) == 3 else MLP
    effort = getattr(kind, use, None) or getattr(usual, use)
    return Recipe(**vars(effort))


def deployed_recipe(recipe: Recipe, name: str) -> Recipe:
    """`recipe` for a deployed model as is, or as the paper trains, by the name of either.

    Raises TrainingError for another name.
    """
    if name == "usual":
        return recipe
    if name != "published":
        raise TrainingError(f"no recipe is called {name!r}; there are usual, published")
    return _as_published(recipe)


def check_recipe(style: str, spec: CodeSpec) -> None:
    """Raise TrainingError for another style, and for a code that the paper has not."""
    if style not in get_args(Style):
        raise TrainingError(
            f"no recipe is called {style!r}; there are {', '.join(get_args(Style))}"
        )
    if style != "published":
        return
    if spec.encoder not in PUBLISHED_ENCODERS or spec.decoder != "subtraction":
        raise TrainingError(
            f"the published recipe is for {' and '.join(PUBLISHED_ENCODERS)} with subtraction, not "
            f"{spec.encoder} with {spec.decoder}; leave --recipe out for the best known here"
        )


def parity_recipe(recipe: Recipe, style: str, code: Code) -> Recipe:
    """`recipe` for a code, or in the published style (Kosaian et al., SOSP 2019, section 4.1).

    Raises TrainingError for another style, and for codes that were not published.
    """
    check_recipe(style, code.spec)
    if style == "distilled":
        if not code.decoder.sums:
            return recipe
        # Sums of predictions are never learned to the end; those of mirrored queries are more.
        return replace(recipe, epochs=SUMS_EPOCHS * recipe.epochs, mirror=False)
    published = replace(_as_published(recipe), epochs=150)
    return published if code.k == 2 else replace(published, batch=32)


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


def _as_published(recipe: Recipe) -> Recipe:
    """With the paper's optimiser and batches (Kosaian et al., SOSP 2019, section 4.1), and
    nothing mirrored."""
    return replace(
        recipe, batch=64, learning_rate=1e-3, weight_decay=1e-5, mirror=False, style="published"
    )
