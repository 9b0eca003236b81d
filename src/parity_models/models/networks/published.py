"""The published networks that come from torchvision, for images of any channels and sizes.

(VGG: Simonyan, Zisserman, ICLR 2015. ResNet: He et al., CVPR 2016.) `width` multiplies the
channels of all layers: a quarter of them costs about a sixteenth. The last feature map is averaged
over each cell of `grid` (rows, columns), as resnet-small does.
"""

from math import prod
from typing import Any

from torch import Tensor, nn
from torchvision.models import resnet, vgg

from parity_models.errors import TrainingError
from parity_models.models.networks.images import SMALL, Grid, Shape, is_small
from parity_models.models.networks.network import Convolutional, Effort, times


class VGG11(Convolutional, nn.Module):
    """VGG-11 with batch normalisation: (n, channels, height, width) to (n, *output_shape).

    Takes images of any size from 8x8: poolings that would leave fewer pixels than `grid` has
    cells are left out. One full layer stands in place of three, which hold nine tenths of the
    original's weights.
    """

    name = "vgg11"
    deployed = Effort(10, 128, 2e-3, 5e-2, mirror=True, threaded=True)
    parity = Effort(10, 64, 2e-3, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, inputs: Shape, outputs: Shape, grid: Grid) -> nn.Module:
        return cls(inputs, outputs, grid, options.width)

    def __init__(
        self, input_shape: Shape, output_shape: Shape, grid: Grid = (1, 1), width: float = 1.0
    ) -> None:
        super().__init__()
        channels, *size = _image(input_shape, grid, "vgg11")
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
        channels, *size = _image(input_shape, grid, name)
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


class ResNet152(Convolutional):
    """ResNet-152: 3, 8, 36 and 3 bottleneck blocks."""

    name = "resnet152"
    deployed = Effort(10, 128, 2e-3, 5e-2, mirror=True, threaded=True)
    parity = Effort(10, 64, 2e-3, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, inputs: Shape, outputs: Shape, grid: Grid) -> nn.Module:
        blocks = [3, 8, 36, 3]
        return DeepResNet(cls.name, resnet.Bottleneck, blocks, inputs, outputs, grid, options.width)


def _image(shape: Shape, grid: Grid, name: str) -> Shape:
    least = [8 * cells for cells in grid]
    if len(shape) != 3 or shape[1] < least[0] or shape[2] < least[1]:
        raise TrainingError(
            f"{name} takes images of shape (channels, height, width), at least "
            f"{least[0]}x{least[1]} here, not inputs of shape {shape}; use mlp or, for small "
            "images, resnet-small"
        )
    return shape
