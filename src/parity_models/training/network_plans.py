"""The networks of stand-ins: by name or the user's own, built for queries or for a code, and the
recipes they are trained by."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Literal

import torch
from torch import nn

from parity_models.bundle.onnx_model import OnnxModel
from parity_models.codes import Code
from parity_models.errors import TrainingError, UserError
from parity_models.registry import is_own, load_own, say
from parity_models.tensors.signature import Signature, Tensor
from parity_models.training.export import OUTPUT, export, floats
from parity_models.training.networks import MLP, NETWORKS, Effort, Network, SmallResNet, family
from parity_models.training.networks.network import EachSlot, Folded, copy_weights
from parity_models.training.networks.queried import Grid, Queried, Shape

SUMS_EPOCHS = 4
"""Learning sums of predictions takes this many times as many epochs as learning each apart."""

Factory = Callable[..., nn.Module]
"""A function of the shapes of an input and of an output, both without the batch axis, that makes a
module from (n, *input_shape) to (n, *output_shape), float32."""


@dataclass(frozen=True)
class NetworkPlan:
    """A network by name, how it is made, and the recipe it is trained by.

    Networks that average their last feature map do so over each of `places`, rows and columns.
    """

    name: str
    make: Callable[[], nn.Module]
    recipe: Effort
    places: Grid = (1, 1)


ParityPlan = Callable[[str | Factory, Code], NetworkPlan]
"""A function that plans the network of parity models for a code: `parity_network`."""


def single_network(network: str | Factory, queried: Queried, outputs: Shape) -> NetworkPlan:
    """Return the network called `network` for single queries, and outputs of this shape.

    Raises TrainingError for a name that does not exist, and for a network for other queries.
    """
    name, kind, options = find_network(network)
    if not kind.takes(queried):
        fitting = " or ".join(each.name for each in NETWORKS if each.takes(queried))
        raise TrainingError(
            f"{name} cannot take the model's queries, {queried}; "
            f"choose {fitting or 'your own network, package.module:Class'}"
        )
    shape = queried.shape if queried.is_array else ()
    make = partial(kind.build, options, queried, outputs)
    if is_own(name) and queried.is_array:
        make = partial(_checked, name, make, shape, outputs)
    return NetworkPlan(name, make, recipe_for(kind, "deployed", shape))


def parity_network(network: str | Factory, code: Code) -> NetworkPlan:
    """Return the network called `network` for parity queries: a name, or a function.

    Raises TrainingError or UserError for a name or a function that does not exist. The network is
    checked when it is built.
    """
    name, kind, options = find_network(network)
    places = kind.parity_grid(code)
    make = partial(kind.build_parity, options, code, places)
    if is_own(name):
        make = partial(_checked, name, make, code.parity_shape, code.parity_output_shape)
    recipe = recipe_for(kind, "parity", code.parity_shape)
    if code.decoder.sums:
        # Sums of predictions are never fully learned, and mirroring makes more of them.
        recipe = replace(recipe, epochs=SUMS_EPOCHS * recipe.epochs, mirror=False)
    return NetworkPlan(name, make, recipe, places)


def recipe_for(
    kind: type[Network] | None, use: Literal["deployed", "parity"], inputs: Shape
) -> Effort:
    """Return the recipe of a network as a deployed model or backup, or as a parity model. One
    without settings, such as a function of the user's, gets the recipe that suits its inputs."""
    usual = SmallResNet if len(inputs) == 3 else MLP
    effort: Effort = getattr(kind, use, None) or getattr(usual, use)
    return effort


def find_network(network: str | Factory) -> tuple[str, type[Network], Any]:
    """Return the name, the class and the options of a network of this package or the user's own.

    The user's own is package.module:name of a subclass of Network, which may have options after it,
    or a Factory, by name or itself. Raises UserError for a module or name that does not exist, and
    TrainingError for unknown networks and options.
    """
    if not isinstance(network, str):
        name = f"{getattr(network, '__module__', '?')}:{getattr(network, '__qualname__', '?')}"
        return name, _made_by(name, network), None
    if is_own(network):
        factory = load_own(family(network))
        if not (isinstance(factory, type) and issubclass(factory, Network)):
            return network, _made_by(network, factory), None
    try:
        return network, *NETWORKS.parse(network)
    except UserError as error:
        raise error if is_own(network) else TrainingError(str(error)) from error


def _made_by(name: str, factory: Factory) -> type[Network]:
    if not callable(factory):
        raise TrainingError(f"{name} is {factory!r}, not a function that makes a network")

    class Made(Network):
        """A network that the user's function makes."""

        @classmethod
        def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
            return factory(queried.shape, outputs)

        @classmethod
        def build_parity(cls, options: Any, code: Code, grid: Grid) -> nn.Module:
            return factory(code.parity_shape, code.parity_output_shape)

    return Made


def _checked(name: str, make: Callable[[], nn.Module], takes: Shape, gives: Shape) -> nn.Module:
    """Make the user's own network, called `name`, and check it.

    Raises TrainingError if it is not a network, or does not fit the shapes.
    """
    try:
        network: object = make()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f"{name}({takes}, {gives}) failed: {say(error)}") from error
    if not isinstance(network, nn.Module):
        raise TrainingError(f"{name} made {type(network).__name__}, not a torch.nn.Module")
    made = f"the network that {name} made"
    try:
        with torch.no_grad():
            outputs = network.eval()(torch.zeros(2, *takes))
    except Exception as error:
        raise TrainingError(f"{made} cannot take inputs of shape {takes}: {say(error)}") from error
    if not isinstance(outputs, torch.Tensor) or outputs.shape != (2, *gives):
        found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs)
        raise TrainingError(f"{made} gives {found} for 2 inputs, where {(2, *gives)} is needed")
    if next(network.parameters(), None) is None:
        raise TrainingError(f"{made} has no weights that could be trained")
    try:
        signature = Signature((floats(takes),), (Tensor(OUTPUT, "FP32", gives),))
        OnnxModel(export(network, signature.inputs), signature=signature)  # now, not after hours
    except Exception as error:
        raise TrainingError(f"{made} cannot be served from ONNX: {say(error)}") from error
    return network


def build_models(network: NetworkPlan, r: int, deployed: nn.Module) -> tuple[nn.ModuleList, bool]:
    """Build r parity models, which start from weights of the `deployed` model if layers are alike
    and the recipe says so. Return whether they do."""
    models = nn.ModuleList(network.make() for _ in range(r))
    started = False
    for j, model in enumerate(models if network.recipe.from_deployed else ()):
        single = model.network if isinstance(model, EachSlot) else None
        if isinstance(single, Folded):
            # It begins as F would on images shrunk by area averaging. Models that start alike stay
            # alike, and their mean is no better than each: only one begins with F's first layer.
            alike = copy_weights(single.network, deployed, prod(single.block), shared=j == 0)
        else:  # the head begins with the weights for the mean of the places
            alike = copy_weights(model, deployed, prod(network.places))
        started = started or alike
    return models, started
