"""The paper's networks that the wheel does without, and its training, to compare with.

Importing this module registers the networks. (LeNet-5: LeCun et al., 1998. VGG: Simonyan,
Zisserman, ICLR 2015. ResNet: He et al., CVPR 2016. The training: Kosaian et al., SOSP 2019, section
4.1.)
"""

from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchvision.models import resnet, vgg

from parity_models.codes import Code, CodeSpec
from parity_models.errors import TrainingError
from parity_models.models.networks import NETWORKS, family
from parity_models.models.networks.convolutional import DeepResNet, check_image
from parity_models.models.networks.network import Effort, Scalable, tiles, times
from parity_models.models.networks.queried import Grid, Queried, Shape
from parity_models.training.networks import Factory, NetworkPlan, find_network, parity_network

SMALLEST = 12


class LeNet5(Scalable, nn.Module):
    """Two convolutions and three full layers (LeCun et al., 1998), with ReLU and max pooling.

    Takes images (n, channels, height, width) of at least 12x12, gives (n, *output_shape). For
    28x28 its layers have the sizes of the original, times `width`: the first convolution pads to
    32x32.
    """

    name = "lenet5"
    deployed = Effort(20, 256, 4e-3, 5e-2, mirror=True, threaded=True)
    parity = Effort(30, 256, 4e-3, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        return cls(queried.shape, outputs, options.width)

    def __init__(
        self, input_shape: tuple[int, ...], output_shape: tuple[int, ...], width: float = 1.0
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < SMALLEST:
            raise TrainingError(
                "lenet5 takes images of shape (channels, height, width), at least "
                f"{SMALLEST}x{SMALLEST}, not inputs of shape {input_shape}; use mlp or, for "
                "small images, resnet-small"
            )
        channels, rows, columns = input_shape
        first, second, third, fourth = (times(width, units) for units in (6, 16, 120, 84))
        self.output_shape = output_shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * _left(rows) * _left(columns), third),
            nn.ReLU(),
            nn.Linear(third, fourth),
            nn.ReLU(),
            nn.Linear(fourth, prod(output_shape)),
        )

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.layers(input)
        return output.reshape(-1, *self.output_shape)


def _left(length: int) -> int:
    return (length // 2 - 4) // 2


class VGG11(Scalable, nn.Module):
    """VGG-11 with batch normalisation: (n, channels, height, width) to (n, *output_shape).

    Takes images of any size from 8x8: poolings that would leave fewer pixels than `grid` has
    cells are left out. One full layer stands in place of three, which hold nine tenths of the
    original's weights.
    """

    name = "vgg11"
    deployed = Effort(10, 128, 2e-3, 5e-2, mirror=True, threaded=True)
    parity = Effort(10, 64, 2e-3, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        return cls(queried.shape, outputs, queried.grid, options.width)

    def __init__(
        self, input_shape: Shape, output_shape: Shape, grid: Grid = (1, 1), width: float = 1.0
    ) -> None:
        super().__init__()
        channels, *size = check_image(input_shape, grid, "vgg11")
        layers = [
            times(width, layer) if isinstance(layer, int) else layer for layer in vgg.cfgs["A"]
        ]
        self.features = vgg.make_layers(layers, batch_norm=True)
        for i, layer in enumerate(self.features):
            if not isinstance(layer, nn.MaxPool2d):
                continue
            if all(length // 2 >= cells for length, cells in zip(size, grid, strict=True)):
                size = [length // 2 for length in size]
            else:  # in its place, so that weights have the same names for images of any size
                self.features[i] = nn.Identity()
        self.features[0] = nn.Conv2d(channels, times(width, 64), 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.head = nn.Linear(times(width, 512) * prod(grid), prod(output_shape))
        self.output_shape = output_shape

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.head(self.pool(self.features(input)).flatten(1))
        return output.reshape(-1, *self.output_shape)


class ResNet152(Scalable):
    """ResNet-152: 3, 8, 36 and 3 bottleneck blocks."""

    name = "resnet152"
    deployed = Effort(10, 128, 2e-3, 5e-2, mirror=True, threaded=True)
    parity = Effort(10, 64, 2e-3, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        shape, grid, blocks = queried.shape, queried.grid, [3, 8, 36, 3]
        return DeepResNet(cls.name, resnet.Bottleneck, blocks, shape, outputs, grid, options.width)


NETWORKS.register(LeNet5, VGG11, ResNet152)

ENCODERS = ("sum", "concatenation")


@dataclass(frozen=True)
class Published(Effort):
    """Adam with a constant learning rate, and the squared error of parity outputs."""

    style: ClassVar[str] = "published"
    from_deployed: ClassVar[bool] = False
    decoded: ClassVar[bool] = False

    def optimizer(self, weights: "torch.optim.optimizer.ParamsT") -> Optimizer:
        return torch.optim.Adam(weights, weight_decay=self.weight_decay, fused=True)

    def rate_at(self, spent: float) -> float:
        return self.learning_rate


def as_published(recipe: Effort) -> Published:
    """Return `recipe` with the paper's optimiser and batches, nothing mirrored."""
    fields = vars(recipe) | {"batch": 64, "learning_rate": 1e-3, "weight_decay": 1e-5}
    return Published(**fields | {"mirror": False})


def published_network(network: str | Factory, code: Code) -> NetworkPlan:
    """Return the network called `network` for parity queries, as `parity_network` does.

    It sees no more places apart than the images are tiled to. Networks of this package start from
    random weights drawn as the paper's code draws them. Raises TrainingError as `check_published`
    does.
    """
    check_published(code.spec)
    usual, places = parity_network(network, code), tiles(code)
    recipe = replace(as_published(usual.recipe), epochs=150, batch=64 if code.k == 2 else 32)
    name, kind, options = find_network(network)
    if family(name) not in NETWORKS.names:  # a user's own is drawn as they like
        return replace(usual, recipe=recipe)

    def make() -> nn.Module:
        return kind.build_parity(options, code, places).apply(draw_weights)

    return NetworkPlan(name, make, recipe, places)


def check_published(spec: CodeSpec) -> None:
    """Raise TrainingError for a code that the paper does not have."""
    if spec.encoder not in ENCODERS or spec.decoder != "subtraction":
        raise TrainingError(
            f"the published recipe is for {' and '.join(ENCODERS)} with subtraction, not "
            f"{spec.encoder} with {spec.decoder}; leave the recipe out for the best known here"
        )


def draw_weights(layer: nn.Module) -> None:
    """Draw a layer's weights as the paper's training code does."""
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
    elif isinstance(layer, nn.Conv1d | nn.Conv2d):
        nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("relu"))
    else:
        return
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
