"""Residual networks for images and for sequences (He et al., CVPR 2016)."""

from abc import abstractmethod
from math import ceil, prod
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet

from parity_models.codes import Code
from parity_models.errors import TrainingError
from parity_models.models.networks.network import (
    SMALL,
    Effort,
    Scalable,
    as_images,
    image_shape,
    is_small,
    times,
)
from parity_models.models.networks.queried import Grid, Queried, Shape

Pair = tuple[int, int]

SMALLEST, LEAST_STEPS = 4, 8
"""Rows and columns of the smallest image, and steps of the shortest sequence, of small networks."""

PIXELS, MAX_PLACES = 4, 8
"""The side of one pooling cell in pixels, and the most rows and columns of cells."""


class _Small(Scalable, nn.Module):
    """Three stages of one residual block, of `channels` times `width`.

    Convolutions see `size` rows and columns at once; the second and third stage shrink the feature
    map by `stride`. It is averaged over each cell of `grid` (rows, columns) in the end.
    """

    channels: ClassVar[tuple[int, ...]]
    size: ClassVar[Pair]
    stride: ClassVar[Pair]

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        return cls(queried.shape, outputs, queried.grid, options.width)

    def __init__(
        self, input_shape: Shape, output_shape: Shape, grid: Grid = (1, 1), width: float = 1.0
    ) -> None:
        super().__init__()
        self.check(input_shape, grid)
        self.input_shape, self.output_shape, self.grid = input_shape, output_shape, grid
        first, second, third = (times(width, each) for each in self.channels)
        self.stem = convolution(image_shape(input_shape)[0], first, self.size)
        self.stages = nn.Sequential(
            _Block(first, first, self.size, (1, 1)),
            _Block(first, second, self.size, self.stride),
            _Block(second, third, self.size, self.stride),
        )
        self.head = nn.Linear(third * prod(grid), prod(output_shape))

    @classmethod
    @abstractmethod
    def check(cls, shape: Shape, grid: Grid) -> None:
        """Raise TrainingError for inputs of a shape that it cannot take."""

    def forward(self, input: Tensor) -> Tensor:
        images = as_images(input, self.input_shape)
        features = self.stages(functional.relu(self.stem(images)))
        pooled = functional.adaptive_avg_pool2d(features, self.grid)
        output: Tensor = self.head(pooled.flatten(1))
        return output.reshape(-1, *self.output_shape)


class SmallResNet(_Small):
    """A residual network for small images (n, channels, height, width)."""

    name = "resnet-small"
    deployed = Effort(6, 128, 1e-2, 5e-2, mirror=True, threaded=True)
    parity = Effort(10, 64, 1e-2, 5e-2, mirror=True, threaded=True)
    channels, size, stride = (16, 32, 64), (3, 3), (2, 2)

    @classmethod
    def check(cls, shape: Shape, grid: Grid) -> None:
        check_image(shape, grid, cls.name, SMALLEST)

    @classmethod
    def parity_grid(cls, code: Code) -> Grid:
        """Return the grid of pooling cells: finer where the encoder overlays images, so that the
        network knows where a feature is."""
        return super().parity_grid(code) if code.encoder.apart else places(code.parity_shape)

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        small = queried.is_array and is_small(queried.shape)
        return (f"{cls.name}@0.5", cls.name) if small else ()


class SequenceResNet(_Small):
    """A residual network for sequences: sensors, sounds, prices over time.

    Takes (n, channels, time) or (n, time, channels), whichever axis is the longer being time, or
    images of one row, (n, channels, 1, time).
    """

    name = "resnet-1d"
    deployed = Effort(15, 128, 1e-2, 5e-2, mirror=False, threaded=True)
    parity = Effort(20, 64, 1e-2, 5e-2, mirror=False, threaded=True)
    channels, size, stride = (32, 64, 128), (1, 5), (1, 2)

    @classmethod
    def check(cls, shape: Shape, grid: Grid) -> None:
        image = image_shape(shape)
        if len(image) != 3 or image[1] != 1 or image[2] < LEAST_STEPS:
            raise TrainingError(
                "resnet-1d takes sequences of shape (channels, time) or (time, channels), at "
                f"least {LEAST_STEPS} steps here, not inputs of shape {shape}; use mlp"
            )

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        sequence = queried.is_array and len(queried.shape) == 2
        return (f"{cls.name}@0.5", cls.name) if sequence else ()


class _Block(nn.Module):
    def __init__(self, before: int, after: int, size: Pair, stride: Pair) -> None:
        super().__init__()
        self.first = convolution(before, after, size, stride)
        self.second = convolution(after, after, size)
        self.shortcut = (
            nn.Identity()
            if before == after and stride == (1, 1)
            else convolution(before, after, (1, 1), stride)
        )

    def forward(self, input: Tensor) -> Tensor:
        inner = self.second(functional.relu(self.first(input)))
        return functional.relu(inner + self.shortcut(input))


def convolution(before: int, after: int, size: Pair, stride: Pair = (1, 1)) -> nn.Sequential:
    """Return a padded convolution and its normalisation."""
    rows, columns = size
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, padding=(rows // 2, columns // 2), bias=False),
        nn.BatchNorm2d(after),
    )


class DeepResNet(resnet.ResNet):  # type: ignore[misc]  # torchvision is untyped
    """A residual network of torchvision's: (n, channels, height, width) to (n, *output_shape).

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
