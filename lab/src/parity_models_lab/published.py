"""The paper's networks that the wheel does without, and its training, to compare with.

Importing this module registers the networks. (LeNet-5: LeCun et al., 1998. VGG: Simonyan,
Zisserman, ICLR 2015. ResNet: He et al., CVPR 2016. The training: Kosaian et al., SOSP 2019, section
4.1.)
"""

from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer
from torchvision.models import resnet

from parity_models.codes import Code, CodeSpec
from parity_models.errors import TrainingError
from parity_models.training.network_plans import Factory, NetworkPlan, find_network, parity_network
from parity_models.training.networks import NETWORKS, family
from parity_models.training.networks.convolutional import check_image, deep_network
from parity_models.training.networks.network import Effort, Scalable, tiles, times
from parity_models.training.networks.queried import Queried, Shape

VGG_11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)
"""Channels of VGG-11's convolutions; 0 is a pooling."""


class LeNet5(Scalable):
    """Two convolutions and three full layers (LeCun et al., 1998), with ReLU and max pooling.

    Takes images (n, channels, height, width) of at least 12x12, gives (n, *output_shape). For
    28x28, padded to 32x32, its layers have the sizes of the original, times `width`.
    """

    name = "lenet5"
    deployed = Effort(20, 256, 4e-3, 5e-2, mirror=True, threaded=True)
    parity = Effort(30, 256, 4e-3, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        channels, *size = check_image(queried.shape, (1, 1), cls.name, least=12)
        first, second, third, fourth = (times(options.width, units) for units in (6, 16, 120, 84))
        rows, columns = ((length // 2 - 4) // 2 for length in size)
        return nn.Sequential(
            nn.Conv2d(channels, first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * rows * columns, third),
            nn.ReLU(),
            nn.Linear(third, fourth),
            nn.ReLU(),
            nn.Linear(fourth, prod(outputs)),
            nn.Unflatten(1, outputs),
        )


class VGG11(Scalable):
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
        grid, layers = queried.grid, list[nn.Module]()
        channels, *size = check_image(queried.shape, grid, cls.name)
        for units in VGG_11:
            if units:
                made = times(options.width, units)
                layers += [nn.Conv2d(channels, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU()]
                channels = made
            elif all(length // 2 >= cells for length, cells in zip(size, grid, strict=True)):
                layers.append(nn.MaxPool2d(2))
                size = [length // 2 for length in size]
            else:  # in its place, so that weights have the same names for images of any size
                layers.append(nn.Identity())
        return nn.Sequential(
            *layers,
            nn.AdaptiveAvgPool2d(grid),
            nn.Flatten(),
            nn.Linear(channels * prod(grid), prod(outputs)),
            nn.Unflatten(1, outputs),
        )


class ResNet152(Scalable):
    """ResNet-152: 3, 8, 36 and 3 bottleneck blocks."""

    name = "resnet152"
    deployed = Effort(10, 128, 2e-3, 5e-2, mirror=True, threaded=True)
    parity = Effort(10, 64, 2e-3, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        blocks, width = (3, 8, 36, 3), options.width
        return deep_network(cls.name, resnet.Bottleneck, blocks, width, queried, outputs)


NETWORKS.register(LeNet5, VGG11, ResNet152)


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
    """Return the network called `network` for parity queries, as `parity_network` does; those of
    this package start from random weights drawn as the paper's code draws them."""
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
    if spec.encoder not in ("sum", "concatenation") or spec.decoder != "subtraction":
        raise TrainingError(
            "the published recipe is for sum and concatenation with subtraction, not "
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
