"""Networks of the user's own: made by a function or class of theirs, and checked."""

import inspect
from collections.abc import Callable

import torch
from torch import nn

from parity_models.errors import TrainingError
from parity_models.models.export import export_onnx
from parity_models.own_code import say

Shape = tuple[int, ...]

Factory = Callable[..., nn.Module]
"""Called with the shapes of an input and of an output, both without the batch axis, makes a module
that maps (n, *input_shape) to (n, *output_shape), float32. One that has a parameter `grid` gets
it by name: the rows and columns of images that concatenation tiled."""


def build_own(
    name: str, factory: Factory, takes: Shape, gives: Shape, grid: tuple[int, int] = (1, 1)
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
        export_onnx(network, takes)  # now, not after hours of training
    except Exception as error:
        raise TrainingError(
            f"the network that {name} made cannot be exported to ONNX: {say(error)}"
        ) from error
    return network
