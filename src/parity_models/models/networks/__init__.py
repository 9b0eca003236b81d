"""Network architectures, for all models of a bundle alike, built by name for any shapes."""

from collections.abc import Callable

from torch import nn

from parity_models.errors import TrainingError
from parity_models.models.networks.lenet import LeNet5
from parity_models.models.networks.linear import Linear
from parity_models.models.networks.mlp import MLP
from parity_models.models.networks.resnet import SmallResNet

Grid = tuple[int, int]
Shape = tuple[int, ...]

NETWORKS: dict[str, Callable[[Shape, Shape, Grid], nn.Module]] = {
    "linear": lambda inputs, outputs, grid: Linear(inputs, outputs),
    "mlp": lambda inputs, outputs, grid: MLP(inputs, outputs),
    "lenet5": lambda inputs, outputs, grid: LeNet5(inputs, outputs),
    "resnet-small": SmallResNet,
}


def build_network(
    name: str, input_shape: Shape, output_shape: Shape, grid: Grid = (1, 1)
) -> nn.Module:
    """The network called `name`, freshly initialised: (n, *input_shape) to (n, *output_shape).

    `grid` are the rows and columns of tiles in an input that concatenation made: networks that
    average their last feature map over the whole image do so tile by tile, so that the head
    sees which slot a feature comes from. Raises TrainingError for a name that does not exist
    and for a network that cannot take such inputs.
    """
    try:
        network = NETWORKS[name]
    except KeyError:
        known = ", ".join(NETWORKS)
        raise TrainingError(f"no network is called {name!r}; there are {known}") from None
    return network(input_shape, output_shape, grid)


__all__ = ["MLP", "NETWORKS", "LeNet5", "Linear", "SmallResNet", "build_network"]
