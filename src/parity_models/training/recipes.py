"""What to train with, by network: the defaults that measured best (docs/research/training.md)."""

from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, get_args

from torch import nn

from parity_models.codes import CodeSpec
from parity_models.errors import TrainingError
from parity_models.models.networks import family
from parity_models.training.checkpoint import Options
from parity_models.training.schedule import Budget, Constant, OneCycle, Schedule

LEAST_STEPS = 2000
"""Steps that a run takes by default, if its data is so small that its epochs have few."""

LEAST_STEPS_PER_EPOCH = 16

Style = Literal["distilled", "published"]
"""How parity models learn: from decoded predictions, or as in the publication."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    `epochs` is the default length; `batch` counts queries of a deployed model and groups of a
    parity model; `mirror` has queries turned left to right at random, where the task allows it.
    `threaded` shares a step between threads: for short steps that gains little, and while other
    programs compute, too, threads that wait for each other cost ten times what they gain.
    `style` says what the loss compares, and which optimiser goes with it.
    """

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    mirror: bool
    threaded: bool
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


DEPLOYED = {
    "linear": Recipe(20, 256, 2e-3, 5e-2, mirror=False, threaded=False),
    "mlp": Recipe(30, 256, 2e-3, 5e-2, mirror=True, threaded=False),
    "quadratic": Recipe(30, 256, 2e-3, 5e-2, mirror=False, threaded=False),
    "lenet5": Recipe(20, 256, 4e-3, 5e-2, mirror=True, threaded=True),
    "resnet-small": Recipe(6, 128, 1e-2, 5e-2, mirror=True, threaded=True),
    "resnet-1d": Recipe(15, 128, 1e-2, 5e-2, mirror=False, threaded=True),
    "vgg11": Recipe(10, 128, 2e-3, 5e-2, mirror=True, threaded=True),
    "resnet18": Recipe(10, 128, 4e-3, 5e-2, mirror=True, threaded=True),
    "resnet152": Recipe(10, 128, 2e-3, 5e-2, mirror=True, threaded=True),
}
"""Recipes for deployed models, trained on labels, and for backups that imitate them."""

PARITY = {
    "linear": Recipe(30, 256, 4e-3, 5e-2, mirror=False, threaded=False),
    "mlp": Recipe(60, 256, 4e-3, 5e-2, mirror=False, threaded=False),
    "quadratic": Recipe(60, 256, 4e-3, 5e-2, mirror=False, threaded=False),
    "lenet5": Recipe(30, 256, 4e-3, 5e-2, mirror=True, threaded=True),
    "resnet-small": Recipe(10, 64, 1e-2, 5e-2, mirror=True, threaded=True),
    "resnet-1d": Recipe(20, 64, 1e-2, 5e-2, mirror=False, threaded=True),
    "vgg11": Recipe(10, 64, 2e-3, 5e-2, mirror=True, threaded=True),
    "resnet18": Recipe(10, 64, 4e-3, 5e-2, mirror=True, threaded=True),
    "resnet152": Recipe(10, 64, 2e-3, 5e-2, mirror=True, threaded=True),
}
"""Recipes for parity models, trained on the deployed model's predictions."""

SUBTRACTION_EPOCHS = 4
"""How many times longer sums of predictions are learned than each prediction by itself."""

PUBLISHED_ENCODERS = ("sum", "concatenation")


def recipe_for(recipes: dict[str, Recipe], network: str, input_shape: tuple[int, ...]) -> Recipe:
    """That of the network called `network`; of one that is not ours, what suits its inputs."""
    kind = "resnet-small" if len(input_shape) == 3 else "mlp"
    return recipes.get(family(network), recipes[kind])


def deployed_recipe(recipe: Recipe, name: str) -> Recipe:
    """`recipe` for a deployed model as is, or as the paper trains, by the name of either.

    Raises TrainingError for another name.
    """
    if name == "usual":
        return recipe
    if name != "published":
        raise TrainingError(f"no recipe is called {name!r}; there are usual, published")
    return _as_published(recipe)


def parity_recipe(recipe: Recipe, style: str, spec: CodeSpec) -> Recipe:
    """`recipe` for a code, or in the published style (Kosaian et al., SOSP 2019, section 4.1).

    Raises TrainingError for another style, and for codes that were not published.
    """
    if style == "distilled":
        if spec.decoder != "subtraction":
            return recipe
        # Sums of predictions are never learned to the end; those of mirrored queries are more.
        return replace(recipe, epochs=SUBTRACTION_EPOCHS * recipe.epochs, mirror=False)
    if style != "published":
        raise TrainingError(
            f"no recipe is called {style!r}; there are {', '.join(get_args(Style))}"
        )
    if spec.encoder not in PUBLISHED_ENCODERS or spec.decoder != "subtraction":
        raise TrainingError(
            f"the published recipe is for {' and '.join(PUBLISHED_ENCODERS)} with subtraction, not "
            f"{spec.encoder} with {spec.decoder}; leave --recipe out for the best known here"
        )
    published = replace(_as_published(recipe), epochs=150)
    return published if spec.k == 2 else replace(published, batch=32)


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
