"""Residual networks for images and for sequences (He et al., CVPR 2016)."""

from collections.abc import Sequence
from math import ceil, prod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet

from parity_models.codes import Code
from parity_models.errors import TrainingError
from parity_models.models.networks.network import SMALL, Effort, Scalable, is_small, times
from parity_models.models.networks.queried import Grid, Queried, Shape
from parity_models.models.networks.slotwise import as_images, image_shape

Pair = tuple[int, int]

IMAGE_STAGES, SEQUENCE_STAGES = (16, 32, 64), (32, 64, 128)
"""Channels of each stage; all but the first halve height and width, or the steps."""

SMALLEST = 4
"""Rows and columns of the smallest image that three stages can shrink."""

SIZE, LEAST_STEPS = 5, 8
"""Steps that a convolution over time sees at once, and those of the shortest sequence."""

PIXELS, MAX_PLACES = 4, 8
"""The side of one pooling cell in pixels, and the most rows and columns of cells."""


class SmallResNet(Scalable, nn.Module):
    """Three stages of one residual block with 16, 32 and 64 channels, times `width`.

    Takes images (n, channels, height, width), gives (n, *output_shape). The last feature map is
    averaged over each cell of `grid` (rows, columns), by default over the whole image.
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
        network can tell where a feature is."""
        return super().parity_grid(code) if code.encoder.apart else places(code.parity_shape)

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        small = queried.is_array and is_small(queried.shape)
        return (f"{cls.name}@0.5", cls.name) if small else ()

    def __init__(
        self, input_shape: Shape, output_shape: Shape, grid: Grid = (1, 1), width: float = 1.0
    ) -> None:
        super().__init__()
        check_image(input_shape, grid, self.name, SMALLEST)
        self.output_shape = output_shape
        self.grid = grid
        self.channels = [times(width, each) for each in IMAGE_STAGES]
        self.stem = convolution(input_shape[0], self.channels[0], (3, 3))
        self.stages = residual_stages(self.channels, (3, 3), (2, 2))
        self.head = nn.Linear(self.channels[-1] * prod(grid), prod(output_shape))

    def forward(self, input: Tensor) -> Tensor:
        return self.leave(self.stages(self.enter(input)))

    def enter(self, input: Tensor) -> Tensor:
        """Return the input of the stages, from images."""
        return functional.relu(self.stem(input))

    def leave(self, features: Tensor) -> Tensor:
        """Return the network's outputs, from the output of the stages."""
        pooled = functional.adaptive_avg_pool2d(features, self.grid)
        output: Tensor = self.head(pooled.flatten(1))
        return output.reshape(-1, *self.output_shape)


class SequenceResNet(Scalable, nn.Module):
    """Three stages of one residual block with 32, 64 and 128 channels, times `width`, convolved
    over time.

    Takes sequences (n, channels, time) or (n, time, channels), whichever axis is the longer being
    time, or images of one row, (n, channels, 1, time); gives (n, *output_shape). The last feature
    map is averaged over time.
    """

    name = "resnet-1d"
    deployed = Effort(15, 128, 1e-2, 5e-2, mirror=False, threaded=True)
    parity = Effort(20, 64, 1e-2, 5e-2, mirror=False, threaded=True)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        return cls(queried.shape, outputs, options.width)

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        sequence = queried.is_array and len(queried.shape) == 2
        return (f"{cls.name}@0.5", cls.name) if sequence else ()

    def __init__(self, input_shape: Shape, output_shape: Shape, width: float = 1.0) -> None:
        super().__init__()
        image = image_shape(input_shape)
        if len(image) != 3 or image[1] != 1 or image[2] < LEAST_STEPS:
            raise TrainingError(
                "resnet-1d takes sequences of shape (channels, time) or (time, channels), at "
                f"least {LEAST_STEPS} steps here, not inputs of shape {input_shape}; use mlp"
            )
        self.input_shape = input_shape
        self.output_shape = output_shape
        channels = [times(width, each) for each in SEQUENCE_STAGES]
        self.stem = convolution(image[0], channels[0], (1, SIZE))
        self.stages = residual_stages(channels, (1, SIZE), (1, 2))
        self.head = nn.Linear(channels[-1], prod(output_shape))

    def forward(self, input: Tensor) -> Tensor:
        images = as_images(input, self.input_shape)
        features = self.stages(functional.relu(self.stem(images)))
        output: Tensor = self.head(features.mean((2, 3)))
        return output.reshape(-1, *self.output_shape)


def residual_stages(channels: Sequence[int], size: Pair, stride: Pair) -> nn.Sequential:
    """Return one residual block for each number of `channels`; the first keeps its number.

    `size` is the rows and columns of each convolution. All blocks but the first shrink the feature
    map by `stride`.
    """
    pairs = zip((channels[0], *channels), channels, strict=False)
    return nn.Sequential(
        *(
            _Block(before, after, size, stride if i else (1, 1))
            for i, (before, after) in enumerate(pairs)
        )
    )


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
    """Return the grid of pooling cells for images that are overlaid, as by sum: one mean over the
    whole feature map would not tell which features belong together.

    Neighbouring cells are joined until there are no more than MAX_PLACES.
    """
    if len(shape) != 3:
        return 1, 1
    cells = [max(1, side // PIXELS) for side in shape[1:]]
    rows, columns = (ceil(each / ceil(each / MAX_PLACES)) for each in cells)
    return rows, columns
