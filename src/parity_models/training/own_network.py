"""Networks by name, users' own among them: made by a function or class of theirs, and checked."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from parity_models.codes import Code
from parity_models.errors import TrainingError, UserError
from parity_models.models.export import export, floats
from parity_models.models.networks import NETWORKS, Network, family
from parity_models.models.networks.images import Grid, Shape
from parity_models.models.onnx_model import OnnxModel
from parity_models.own_code import load_own, say
from parity_models.registry import is_own

Factory = Callable[..., nn.Module]
"""Called with the shapes of an input and of an output, both without the batch axis, makes a module
that maps (n, *input_shape) to (n, *output_shape), float32. One that has a parameter `grid` gets
it by name: the rows and columns of images that concatenation tiled."""


@dataclass(frozen=True)
class NamedNetwork:
    """A network by name, how it is made for inputs and outputs of some shapes, or for parity
    queries, and for which grid; and the class that says what it is trained with, or None."""

    name: str
    build: Callable[[Shape, Shape, Grid], nn.Module]
    build_parity: Callable[[Code, Grid], nn.Module]
    kind: type[Network] | None = None


def named_network(network: str | Factory) -> NamedNetwork:
    """What a name that the user gives stands for, or a function that makes a network.

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
        kind.check_single(options)
        return kind.build(options, inputs, outputs, grid)

    build_parity = partial(kind.build_parity, options)
    if not is_own(network):
        return NamedNetwork(network, build, build_parity, kind)

    def checked_parity(code: Code, grid: Grid) -> nn.Module:
        shapes = code.parity_shape, code.parity_output_shape
        return build_own(network, lambda *_: build_parity(code, grid), *shapes)

    return NamedNetwork(network, partial(build_own, network, build), checked_parity, kind)


def _made_by(name: str, factory: Factory) -> NamedNetwork:
    build = partial(build_own, name, factory)
    return NamedNetwork(
        name, build, lambda code, grid: build(code.parity_shape, code.parity_output_shape, grid)
    )


def build_own(
    name: str, factory: Factory, takes: Shape, gives: Shape, grid: Grid = (1, 1)
) -> nn.Module:
    """What `factory`, called `name`, makes for inputs and outputs of these shapes.

    Raises TrainingError for what is no network, or one that does not fit.
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
