"""Residual networks for images (He et al., CVPR 2016)."""

from math import ceil, prod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet

from parity_models.codes import Code
from parity_models.errors import TrainingError
from parity_models.training.networks.network import SMALL, Effort, Scalable, is_small, times
from parity_models.training.networks.queried import Grid, Queried, Shape

SMALLEST = 4
"""Rows and columns of the smallest image of small networks."""

PIXELS, MAX_PLACES = 4, 8
"""The side of one pooling cell in pixels, and the most rows and columns of cells."""


class SmallResNet(Scalable, nn.Module):
    """A residual network for small images (n, channels, height, width).

    Three stages of one residual block, of 16, 32 and 64 channels times `width`; the second and
    third halve the feature map. It is averaged over each cell of `grid` (rows, columns) in the end.
    """

    name = "resnet-small"
    deployed = Effort(6, 128, 1e-2, 5e-2, mirror=True, threaded=True)
    parity = Effort(10, 64, 1e-2, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        return cls(queried.shape, outputs, queried.grid, options.width)

    @classmethod
    def parity_grid(cls, code: Code) -> Grid:
        """Return the grid of pooling cells: finer where the encoder overlays images, so that the
        network knows where a feature is."""
        return super().parity_grid(code) if code.encoder.apart else places(code.parity_shape)

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        small = queried.is_array and is_small(queried.shape)
        return (f"{cls.name}@0.5", cls.name) if small else ()

    def __init__(
        self, input_shape: Shape, output_shape: Shape, grid: Grid = (1, 1), width: float = 1.0
    ) -> None:
        super().__init__()
        channels = check_image(input_shape, grid, self.name, SMALLEST)[0]
        self.output_shape, self.grid = output_shape, grid
        first, second, third = (times(width, each) for each in (16, 32, 64))
        self.stem = convolution(channels, first)
        self.stages = nn.Sequential(
            _Block(first, first, 1), _Block(first, second, 2), _Block(second, third, 2)
        )
        self.head = nn.Linear(third * prod(grid), prod(output_shape))

    def forward(self, input: Tensor) -> Tensor:
        features = self.stages(functional.relu(self.stem(input)))
        pooled = functional.adaptive_avg_pool2d(features, self.grid)
        output: Tensor = self.head(pooled.flatten(1))
        return output.reshape(-1, *self.output_shape)


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(before, after, 3, stride)
        self.second = convolution(after, after)
        self.shortcut = (
            nn.Identity()
            if before == after and stride == 1
            else convolution(before, after, 1, stride)
        )

    def forward(self, input: Tensor) -> Tensor:
        inner = self.second(functional.relu(self.first(input)))
        return functional.relu(inner + self.shortcut(input))


def convolution(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a padded convolution and its normalisation."""
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(after),
    )


class DeepResNet(nn.Module):
    """A residual network of torchvision's blocks: (n, channels, height, width) to (n,
    *output_shape). Weights have the names that they have in torchvision's ResNet.

    `width` multiplies the channels of all layers: a quarter of them costs about a sixteenth. The
    last feature map is averaged over each cell of `grid`.
    """

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
        super().__init__()
        channels, *size = check_image(input_shape, grid, name)
        self.output_shape, self.grid, before = output_shape, grid, times(width, 64)
        self.small = min(size) < SMALL
        kernel, stride = (3, 1) if self.small else (7, 2)
        self.conv1 = nn.Conv2d(channels, before, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1, stages = nn.BatchNorm2d(before), []
        for i, count in enumerate(blocks):
            planes, layers = times(width, 64 * 2**i), []
            after = planes * block.expansion
            for j in range(count):
                stride = 2 if i and not j else 1
                same = before == after and stride == 1
                shortcut = None if same else convolution(before, after, 1, stride)
                layers.append(block(before, planes, stride, shortcut))
                before = after
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(before * prod(grid), prod(output_shape))
        for each in self.modules():
            if isinstance(each, nn.Conv2d):
                nn.init.kaiming_normal_(each.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, input: Tensor) -> Tensor:
        features = functional.relu(self.bn1(self.conv1(input)))
        if not self.small:
            features = functional.max_pool2d(features, 3, 2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        pooled = functional.adaptive_avg_pool2d(features, self.grid)
        output: Tensor = self.fc(pooled.flatten(1))
        return output.reshape(-1, *self.output_shape)


class ResNet18(Scalable):
    """ResNet-18: two basic blocks in each of four stages."""

    name = "resnet18"
    deployed = Effort(10, 128, 4e-3, 5e-2, mirror=True, threaded=True)
    parity = Effort(10, 64, 4e-3, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        shape, grid, blocks = queried.shape, queried.grid, [2, 2, 2, 2]
        return DeepResNet(cls.name, resnet.BasicBlock, blocks, shape, outputs, grid, options.width)

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        if not queried.is_array or len(queried.shape) != 3 or is_small(queried.shape):
            return ()
        return (*(f"{cls.name}@{width}" for width in (0.125, 0.25, 0.5)), cls.name)


def check_image(shape: Shape, grid: Grid, name: str, least: int = 8) -> Shape:
    """Return `shape`. Raises TrainingError unless it is that of images with `least` rows and
    columns for each cell of `grid`."""
    rows, columns = (least * cells for cells in grid)
    if len(shape) != 3 or shape[1] < rows or shape[2] < columns:
        raise TrainingError(
            f"{name} takes images of shape (channels, height, width), at least {rows}x{columns} "
            f"here, not inputs of shape {shape}; use mlp or, for small images, resnet-small"
        )
    return shape


def places(shape: Shape) -> Grid:
    """Return the grid of pooling cells for images that are overlaid, as by sum.

    With one mean over the whole feature map, the network could not know which features belong
    together. Neighbouring cells are joined until there are at most MAX_PLACES.
    """
    if len(shape) != 3:
        return 1, 1
    cells = [max(1, side // PIXELS) for side in shape[1:]]
    rows, columns = (ceil(each / ceil(each / MAX_PLACES)) for each in cells)
    return rows, columns
