"""Network architectures, built by name for any shapes."""

from torch import nn

from parity_models.errors import TrainingError, UserError
from parity_models.registry import Registry, is_own
from parity_models.training.networks.convolutional import ResNet18, SmallResNet
from parity_models.training.networks.network import Effort, Network
from parity_models.training.networks.perceptrons import MLP, Linear
from parity_models.training.networks.queried import Grid, Queried, Shape
from parity_models.training.networks.text import Text

NETWORKS = Registry[Network]("network", Network, Linear, MLP, SmallResNet, ResNet18, Text)
"""The networks. A name may have options after it: resnet18@0.25, or resnet18@width=0.25, has a
quarter of the channels."""


def build_network(name: str, inputs: Shape, outputs: Shape, grid: Grid = (1, 1)) -> nn.Module:
    """Build the network called `name`, freshly initialised: (n, *inputs) to (n, *outputs).

    Names from bundles come here, so users' own networks are never imported. `grid`: see `Queried`.
    Raises TrainingError for a name or options that do not exist, and for a network that cannot take
    such inputs.
    """
    if is_own(name):
        raise TrainingError(f"{name} is your own network, which is not imported here")
    try:
        network, options = NETWORKS.parse(name)
    except UserError as error:
        raise TrainingError(str(error)) from error
    return network.build(options, Queried.of(inputs, grid), outputs)


def family(name: str) -> str:
    """Return the name of a network without its options: resnet18 of resnet18@0.25."""
    return name.partition("@")[0]


__all__ = [
    "MLP",
    "NETWORKS",
    "Effort",
    "Linear",
    "Network",
    "Queried",
    "ResNet18",
    "SmallResNet",
    "Text",
    "build_network",
    "family",
]
