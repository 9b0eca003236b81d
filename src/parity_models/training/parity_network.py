"""The network of a parity model: named, built by the user's own function, or chosen.

A parity model that is slower than the deployed model makes its instances a bottleneck, so the
one chosen is the most capable that is not, by inference times measured here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
from torch import nn

from parity_models.codes import Code
from parity_models.codes.encoders import GRIDS
from parity_models.errors import TrainingError
from parity_models.models.bundle import Bundle
from parity_models.models.export import export_onnx
from parity_models.models.inference_time import inference_times
from parity_models.models.networks import build_network
from parity_models.models.networks.published import SMALL
from parity_models.models.networks.slotwise import Slotwise
from parity_models.models.onnx_model import OnnxModel
from parity_models.own_code import load_own
from parity_models.training.own_network import Factory, build_own
from parity_models.training.recipes import PARITY, Recipe, recipe_for

CHOICES = {
    "images": ("linear", "resnet18@0.25", "resnet18@0.5", "resnet18"),
    "small images": ("linear", "mlp", "lenet5", "resnet-small"),
    "sequences": ("linear", "mlp", "resnet-1d"),
    "others": ("linear", "mlp"),
}
"""What a parity model's network is chosen from, by what queries are: each network is slower than
those before it, and more capable. All learn in minutes from some ten thousand queries."""

FLATTENING = ("linear", "mlp")
"""Networks that have no use for folded queries: they see stacked ones all at once."""

PARTING = ("concatenation", "stack")
"""Encoders that lay no query over another."""

PIXELS, MAX_PLACES = 4, 8
"""The sides of what one place of resnet-small's last feature map stands for, and the most rows and
columns of places that its head sees apart."""

SLACK = 1.02
"""By how much measurements of equally fast models differ."""


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
    tiles = _tiles(code)
    if isinstance(network, str) and ":" not in network:
        name, grid = network, tiles
        if name == "resnet-small" and code.spec.encoder not in PARTING and not published:
            grid = _places(code.parity_shape)
        return ParityNetwork(
            name,
            lambda: _build_named(name, code, grid),
            recipe_for(PARITY, name, code.parity_shape),
            grid,
        )
    if isinstance(network, str):
        name, factory = network, load_own(network)
    else:
        factory = network
        name = f"{getattr(factory, '__module__', '?')}:{getattr(factory, '__qualname__', '?')}"
    return ParityNetwork(
        name,
        lambda: build_own(name, factory, code.parity_shape, code.parity_output_shape, tiles),
        recipe_for(PARITY, name, code.parity_shape),
        tiles,
    )


def choose_network(deployed: Bundle, code: Code) -> str:
    """The name of the most capable network for the code's parity queries that takes no longer
    than the deployed model for one query; the fastest if all take longer.
    """
    names = [name for name in CHOICES[_kind(code.query_shape)] if _takes(name, code)]
    reference = OnnxModel(deployed.deployed_path)
    fits, above = 0, len(names)
    while above - fits > 1:
        middle = (fits + above) // 2
        with torch.random.fork_rng(devices=[]):
            network = parity_network(names[middle], code).build()
        candidate = OnnxModel(export_onnx(network, code.parity_shape))
        ours, theirs = inference_times([candidate, reference])
        if ours <= SLACK * theirs:
            fits = middle
        else:
            above = middle
    return names[fits]


def _kind(query_shape: tuple[int, ...]) -> str:
    if len(query_shape) == 2:
        return "sequences"
    if len(query_shape) != 3:
        return "others"
    return "small images" if min(query_shape[1:]) < SMALL else "images"


def _takes(name: str, code: Code) -> bool:
    try:
        with torch.device("meta"):  # without weights
            parity_network(name, code).build()
    except TrainingError:
        return False
    return True


def _build_named(name: str, code: Code, grid: tuple[int, int]) -> nn.Module:
    spec = code.spec
    stacks_slots = (spec.encoder, spec.decoder) == ("stack", "separate") and (
        code.parity_shape[1:] == code.query_shape[1:] and len(code.query_shape) in (2, 3)
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


def _tiles(code: Code) -> tuple[int, int]:
    # Separate outputs of tiled images come each from its own part of the image.
    tiled = (code.spec.encoder, code.spec.decoder) == ("concatenation", "separate")
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
