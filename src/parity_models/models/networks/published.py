"""Residual networks of torchvision, for images of any channels and sizes.

(He et al., CVPR 2016.) `width` multiplies the channels of all layers: a quarter of them costs about
a sixteenth. The last feature map is averaged over each cell of `grid` (rows, columns), as
resnet-small does.
"""

from math import prod
from typing import Any

from torch import Tensor, nn
from torchvision.models import resnet

from parity_models.errors import TrainingError
from parity_models.models.networks.images import SMALL, Grid, Shape, is_small
from parity_models.models.networks.network import Convolutional, Effort, times


class DeepResNet(resnet.ResNet):  # type: ignore[misc]  # torchvision is untyped
    """A residual network of torchvision's: (n, channels, height, width) to (n, *output_shape)."""

    def __init__(
        self,
        name: str,
        block: type[resnet.BasicBlock] | type[resnet.Bottleneck],
        blocks: list[int],
        input_shape: Shape,
        output_shape: Shape,
        grid: Grid = (1, 1),
        width: float = 1.0,
    ) -> None:
        channels, *size = check_image(input_shape, grid, name)
        self._width = width
        super().__init__(block, blocks)
        stem = times(width, 64)
        if min(size) < SMALL:
            self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, stem, 7, 2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(stem)
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        self.fc = nn.Linear(self.inplanes * prod(grid), prod(output_shape))
        self.output_shape = output_shape

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64:  # the first stage takes what the scaled stem gives
            self.inplanes = times(self._width, 64)
        planes = times(self._width, planes)
        stage: nn.Sequential = super()._make_layer(block, planes, *args, **kwargs)
        return stage

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = super().forward(input)
        return output.reshape(-1, *self.output_shape)


class ResNet18(Convolutional):
    """ResNet-18: two basic blocks in each of four stages."""

    name = "resnet18"
    deployed = Effort(10, 128, 4e-3, 5e-2, mirror=True, threaded=True)
    parity = Effort(10, 64, 4e-3, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, inputs: Shape, outputs: Shape, grid: Grid) -> nn.Module:
        blocks = [2, 2, 2, 2]
        return DeepResNet(cls.name, resnet.BasicBlock, blocks, inputs, outputs, grid, options.width)

    @classmethod
    def ladder(cls, query_shape: Shape) -> tuple[str, ...]:
        if len(query_shape) != 3 or is_small(query_shape):
            return ()
        return (*(f"{cls.name}@{width}" for width in (0.125, 0.25, 0.5)), cls.name)


def check_image(shape: Shape, grid: Grid, name: str) -> Shape:
    """Return `shape`. Raises TrainingError unless it is that of images that are large enough."""
    least = [8 * cells for cells in grid]
    if len(shape) != 3 or shape[1] < least[0] or shape[2] < least[1]:
        raise TrainingError(
            f"{name} takes images of shape (channels, height, width), at least "
            f"{least[0]}x{least[1]} here, not inputs of shape {shape}; use mlp or, for small "
            "images, resnet-small"
        )
    return shape
