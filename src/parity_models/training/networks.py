"""The networks of stand-ins: by name or the user's own, built for queries or for a code."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from parity_models.codes import Code
from parity_models.errors import TrainingError, UserError
from parity_models.models.export import export, floats
from parity_models.models.networks import NETWORKS, Network, family
from parity_models.models.networks.network import tiles
from parity_models.models.networks.queried import Grid, Queried, Shape, describe
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.queries import as_batch
from parity_models.registry import is_own, load_own, say
from parity_models.training.recipes import Recipe, parity_recipe, recipe_for
from parity_models.training.teacher import Teacher

Factory = Callable[..., nn.Module]
"""A function of the shapes of an input and of an output, both without the batch axis, that makes a
module from (n, *input_shape) to (n, *output_shape), float32. If it has a parameter `grid`, it gets
the rows and columns of images that concatenation tiled."""


@dataclass(frozen=True)
class NetworkPlan:
    """A network by name, how it is made, and the recipe it is trained by.

    Networks that average their last feature map do so over each of `places`, rows and columns.
    """

    name: str
    make: Callable[[], nn.Module]
    recipe: Recipe
    places: Grid = (1, 1)


def backup_network(
    network: str | Factory, teacher: Teacher, queried: Callable[[], Queried]
) -> NetworkPlan:
    """Return the network called `network` for single queries, which `queried` describes.

    Raises TrainingError for a name that does not exist, and for a network for other queries.
    """
    if teacher.plain:
        named = named_network(network)
        shapes = teacher.signature.input.shape, teacher.output.shape
        recipe = recipe_for(named.kind, "deployed", shapes[0])
        return NetworkPlan(named.name, lambda: named.build(*shapes, (1, 1)), recipe)
    kind, options = _parse(network)
    described = queried()
    if not kind.takes(described):
        fitting = " or ".join(each.name for each in NETWORKS if each.takes(described))
        raise TrainingError(
            f"{network} cannot take the model's queries, {teacher.signature}; "
            f"choose {fitting or 'your own network, package.module:Class'}"
        )
    make = partial(kind.build, options, described, teacher.output.shape)
    return NetworkPlan(str(network), make, recipe_for(kind, "deployed", ()))


def parity_network(network: str | Factory, code: Code, style: str = "distilled") -> NetworkPlan:
    """Return the network called `network` for parity queries: a name, or a function.

    A network trained as `published` sees no more places apart than the images are tiled to. Raises
    TrainingError for a name or style that does not exist, and UserError for a function that does
    not. The network is checked when it is built.
    """
    named = named_network(network)
    kind = named.kind
    places = tiles(code) if kind is None or style == "published" else kind.parity_grid(code)
    recipe = parity_recipe(recipe_for(kind, "parity", code.parity_shape), style, code)
    return NetworkPlan(named.name, lambda: named.build_parity(code, places), recipe, places)


def _parse(network: str | Factory) -> tuple[type[Network], Any]:
    if not isinstance(network, str):
        raise TrainingError(
            "a function makes networks for one float32 input of fixed shape; for other queries "
            "name a network, or package.module:Class for one of your own"
        )
    try:
        return NETWORKS.parse(network)
    except UserError as error:
        raise TrainingError(str(error)) from error


def queried_of(teacher: Teacher, rows: NDArray[Any]) -> Queried:
    """Describe the inputs by `rows` of queries and by the deployed model's graph."""
    bundle, signature = teacher.bundle, teacher.signature
    content = bundle.content(bundle.manifest.deployed)
    return describe(as_batch(rows, signature), signature, content, teacher.output.name)


@dataclass(frozen=True)
class ChosenNetwork:
    """A network by name, how it is made for inputs and outputs of some shapes, or for parity
    queries, and for which grid; and the class that says what it is trained with, or None."""

    name: str
    build: Callable[[Shape, Shape, Grid], nn.Module]
    build_parity: Callable[[Code, Grid], nn.Module]
    kind: type[Network] | None = None


def named_network(network: str | Factory) -> ChosenNetwork:
    """Return the network that a name of the user's stands for, or a function that makes one.

    A name is one of this package's networks, or package.module:name of a user's own: a subclass of
    Network, which may have options after it, or a Factory. Raises UserError for a module or name
    that is not there, and TrainingError for another name and for options that there are not.
    """
    if not isinstance(network, str):
        name = f"{getattr(network, '__module__', '?')}:{getattr(network, '__qualname__', '?')}"
        return _made_by(name, network)
    if is_own(network):
        factory = load_own(family(network))
        if not (isinstance(factory, type) and issubclass(factory, Network)):
            return _made_by(network, factory)
    try:
        kind, options = NETWORKS.parse(network)
    except UserError as error:
        raise error if is_own(network) else TrainingError(str(error)) from error

    def build(inputs: Shape, outputs: Shape, grid: Grid) -> nn.Module:
        return kind.build(options, Queried.of(inputs, grid), outputs)

    build_parity = partial(kind.build_parity, options)
    if not is_own(network):
        return ChosenNetwork(network, build, build_parity, kind)

    def checked_parity(code: Code, grid: Grid) -> nn.Module:
        shapes = code.parity_shape, code.parity_output_shape
        return build_own(network, lambda *_: build_parity(code, grid), *shapes)

    return ChosenNetwork(network, partial(build_own, network, build), checked_parity, kind)


def _made_by(name: str, factory: Factory) -> ChosenNetwork:
    build = partial(build_own, name, factory)
    return ChosenNetwork(
        name, build, lambda code, grid: build(code.parity_shape, code.parity_output_shape, grid)
    )


def build_own(
    name: str, factory: Factory, takes: Shape, gives: Shape, grid: Grid = (1, 1)
) -> nn.Module:
    """Build the network of the user's `factory`, called `name`, and check it.

    Raises TrainingError for what is no network, or one that does not fit the shapes.
    """
    if not callable(factory):
        raise TrainingError(f"{name} is {factory!r}, not a function that makes a network")
    try:
        more = {"grid": grid} if "grid" in inspect.signature(factory).parameters else {}
        network = factory(takes, gives, **more)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise TrainingError(f"{name}({takes}, {gives}) failed: {say(error)}") from error
    if not isinstance(network, nn.Module):
        raise TrainingError(f"{name} made {type(network).__name__}, not a torch.nn.Module")
    try:
        with torch.no_grad():
            outputs = network.eval()(torch.zeros(2, *takes))
    except Exception as error:
        raise TrainingError(
            f"the network that {name} made cannot take inputs of shape {takes}: {say(error)}"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.shape != (2, *gives):
        found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs)
        raise TrainingError(
            f"the network that {name} made gives {found} for 2 inputs, where "
            f"{(2, *gives)} is needed"
        )
    if next(network.parameters(), None) is None:
        raise TrainingError(f"the network that {name} made has no weights that could be trained")
    try:
        OnnxModel(export(network, [floats(takes)]))  # now, not after hours of training
    except Exception as error:
        raise TrainingError(
            f"the network that {name} made cannot be served from ONNX: {say(error)}"
        ) from error
    return network
