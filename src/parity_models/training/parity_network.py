"""The network of a parity model: named, or built by the user's own function."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from parity_models.codes import Code
from parity_models.models.networks.images import Grid, tiles
from parity_models.training.own_network import Factory, named_network
from parity_models.training.recipes import Recipe, recipe_for


@dataclass(frozen=True)
class ParityNetwork:
    """A network by name, how one is built for a code, and the recipe it is trained by.

    Networks that average their last feature map do so over each of `places`, rows and columns.
    """

    name: str
    build: Callable[[], nn.Module]
    recipe: Recipe
    places: Grid


def parity_network(network: str | Factory, code: Code, *, published: bool = False) -> ParityNetwork:
    """The network that `network` stands for: a name, a `package.module:function`, or a function.

    What is trained as `published` sees no more places apart than the images are tiled to. Raises
    TrainingError for a name that does not exist, and UserError for a function that does not. What
    it builds is checked when it is built.
    """
    named = named_network(network)
    kind = named.kind
    places = tiles(code) if kind is None or published else kind.parity_grid(code)
    recipe = recipe_for(kind, "parity", code.parity_shape)
    return ParityNetwork(named.name, lambda: named.build_parity(code, places), recipe, places)
