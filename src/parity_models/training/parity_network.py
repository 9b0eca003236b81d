"""The network of a parity model: named, or built by the user's own function."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from torch import nn

from parity_models.codes import Code, ConcatenationEncoder, SeparateDecoder, StackEncoder
from parity_models.codes.encoders.concatenation import GRIDS
from parity_models.errors import TrainingError
from parity_models.models.networks import NETWORKS, MIMOConv, SmallResNet, build_network
from parity_models.models.networks.slotwise import Slotwise
from parity_models.training.own_network import Factory, named_network
from parity_models.training.recipes import Recipe, recipe_for

FLATTENING = ("linear", "mlp")
"""Networks that have no use for folded queries: they see stacked ones all at once."""

PIXELS, MAX_PLACES = 4, 8
"""The sides of what one place of resnet-small's last feature map stands for, and the most rows and
columns of places that its head sees apart."""


@dataclass(frozen=True)
class ParityNetwork:
    """A network by name, how one is built for a code, and the recipe it is trained by.

    Networks that average their last feature map do so over each of `places`, rows and columns.
    """

    name: str
    build: Callable[[], nn.Module]
    recipe: Recipe
    places: tuple[int, int]


def parity_network(network: str | Factory, code: Code, *, published: bool = False) -> ParityNetwork:
    """The network that `network` stands for: a name, a `package.module:function`, or a function.

    The head of resnet-small sees where things are in images that are laid over one another,
    unless the network has to be as `published`. Raises TrainingError for a name that does not
    exist, and UserError for a function that does not. What it builds is checked when it is built.
    """
    named, tiles = named_network(network), _tiles(code)
    recipe = recipe_for(named.kind, "parity", code.parity_shape)
    if not named.built_in:
        shapes = code.parity_shape, code.parity_output_shape
        return ParityNetwork(named.name, lambda: named.build(*shapes, tiles), recipe, tiles)
    grid = tiles
    if named.kind is MIMOConv:
        grid = _places(code.query_shape)
    elif named.kind is SmallResNet and not code.encoder.apart and not published:
        grid = _places(code.parity_shape)
    return ParityNetwork(named.name, lambda: _build_named(named.name, code, grid), recipe, grid)


def _build_named(name: str, code: Code, grid: tuple[int, int]) -> nn.Module:
    kind, options = NETWORKS.parse(name)
    if kind is MIMOConv:
        _check_stacked(code)
        return MIMOConv(code.query_shape, code.output_shape, code.k, grid, options.width)
    stacks_slots = (
        isinstance(code.encoder, StackEncoder)
        and isinstance(code.decoder, SeparateDecoder)
        and code.parity_shape[1:] == code.query_shape[1:]
        and len(code.query_shape) in (2, 3)
    )
    if stacks_slots and name not in FLATTENING:
        try:
            return Slotwise(
                code.k,
                code.query_shape,
                lambda shape: build_network(name, shape, code.output_shape),
            )
        except TrainingError:  # folded queries are too small for it
            if len(code.query_shape) == 2:
                # Joined, sequences would pass for one that is longer, or has another time axis.
                raise
    return build_network(name, code.parity_shape, code.parity_output_shape, grid)


def _check_stacked(code: Code) -> None:
    spec, encoder = code.spec, code.encoder
    if not isinstance(encoder, StackEncoder) or not isinstance(code.decoder, SeparateDecoder):
        raise TrainingError(
            f"mimo-conv answers each of k stacked images, and is no network for {spec.encoder} "
            f"with {spec.decoder}: use --encoder stack --decoder separate"
        )
    if encoder.axis != 0:
        raise TrainingError(
            "mimo-conv takes images that are stacked along their first axis, not along axis "
            f"{encoder.axis}: leave --axis out"
        )


def _tiles(code: Code) -> tuple[int, int]:
    # Separate outputs of tiled images come each from its own part of the image.
    tiled = isinstance(code.encoder, ConcatenationEncoder) and isinstance(
        code.decoder, SeparateDecoder
    )
    return GRIDS[code.k] if tiled else (1, 1)


def _places(image_shape: tuple[int, ...]) -> tuple[int, int]:
    # The mean of the whole map would not say where in images that are laid over one another a
    # feature is, and so not which features belong together.
    if len(image_shape) != 3:
        return 1, 1
    rows, columns = (max(1, side // PIXELS) for side in image_shape[1:])
    return _few(rows), _few(columns)


def _few(places: int) -> int:
    """At most MAX_PLACES, by joining as many neighbours to one as that takes."""
    return ceil(places / ceil(places / MAX_PLACES))
