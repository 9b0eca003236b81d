"""Network architectures, for all models of a bundle alike, built by name for any shapes."""

from collections.abc import Callable

from torch import nn

from parity_models.errors import TrainingError
from parity_models.models.networks.lenet import LeNet5
from parity_models.models.networks.linear import Linear
from parity_models.models.networks.mlp import MLP
from parity_models.models.networks.published import VGG11, resnet18, resnet152
from parity_models.models.networks.quadratic import Quadratic
from parity_models.models.networks.resnet import SmallResNet
from parity_models.models.networks.sequence import SequenceResNet

Grid = tuple[int, int]
Shape = tuple[int, ...]

NETWORKS: dict[str, Callable[[Shape, Shape, Grid], nn.Module]] = {
    "linear": lambda inputs, outputs, grid: Linear(inputs, outputs),
    "mlp": lambda inputs, outputs, grid: MLP(inputs, outputs),
    "quadratic": lambda inputs, outputs, grid: Quadratic(inputs, outputs),
    "lenet5": lambda inputs, outputs, grid: LeNet5(inputs, outputs),
    "resnet-small": SmallResNet,
    "resnet-1d": lambda inputs, outputs, grid: SequenceResNet(inputs, outputs),
    "vgg11": VGG11,
    "resnet18": resnet18,
    "resnet152": resnet152,
}

SCALABLE: dict[str, Callable[[Shape, Shape, Grid, float], nn.Module]] = {
    "vgg11": VGG11,
    "resnet18": resnet18,
    "resnet152": resnet152,
}
"""Networks that also come with a multiple of their channels: resnet18@0.25 has a quarter."""

WIDEST = 4.0


def build_network(
    name: str, input_shape: Shape, output_shape: Shape, grid: Grid = (1, 1)
) -> nn.Module:
    """The network called `name`, freshly initialised: (n, *input_shape) to (n, *output_shape).

    `grid` are the rows and columns of tiles in an input that concatenation made: networks that
    average their last feature map over the whole image do so tile by tile, so that the head
    sees which slot a feature comes from. Raises TrainingError for a name that does not exist
    and for a network that cannot take such inputs.
    """
    family, at, width = name.partition("@")
    if family not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise TrainingError(f"no network is called {name!r}; there are {known}")
    if at:
        return _scalable(name)(input_shape, output_shape, grid, _width(name, width))
    return NETWORKS[family](input_shape, output_shape, grid)


def family(name: str) -> str:
    """The name of a network without the multiple of its channels: resnet18 of resnet18@0.25."""
    return name.partition("@")[0]


def _scalable(name: str) -> Callable[[Shape, Shape, Grid, float], nn.Module]:
    try:
        return SCALABLE[family(name)]
    except KeyError:
        raise TrainingError(
            f"{family(name)} comes in one width; {', '.join(SCALABLE)} take others, as in "
            "resnet18@0.25"
        ) from None


def _width(name: str, text: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = 0.0
    if not 0 < width <= WIDEST:
        raise TrainingError(
            f"{name!r} asks for no width: after the @ stands a multiple of the channels, up to "
            f"{WIDEST:g}, as in resnet18@0.25"
        )
    return width


__all__ = [
    "MLP",
    "NETWORKS",
    "SCALABLE",
    "LeNet5",
    "Linear",
    "Quadratic",
    "SequenceResNet",
    "SmallResNet",
    "build_network",
    "family",
]
