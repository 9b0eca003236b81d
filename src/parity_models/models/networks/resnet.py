"""A small residual network for small images."""

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from parity_models.codes import Code
from parity_models.errors import TrainingError
from parity_models.models.networks.images import Grid, Shape, is_small, places
from parity_models.models.networks.network import Convolutional, Effort, times

STAGES = (16, 32, 64)
"""Channels of each stage; all but the first halve height and width."""

SMALLEST = 2 ** (len(STAGES) - 1)
"""Rows and columns of the smallest image that the stages can shrink."""

Pair = tuple[int, int]


class SmallResNet(Convolutional, nn.Module):
    """Three stages of one residual block with 16, 32 and 64 channels, times `width`.

    (He et al., CVPR 2016.)
    Takes images (n, channels, height, width), gives (n, *output_shape). The last feature map is
    averaged over each cell of `grid` (rows, columns), by default over the whole image.
    """

    name = "resnet-small"
    deployed = Effort(6, 128, 1e-2, 5e-2, mirror=True, threaded=True)
    parity = Effort(10, 64, 1e-2, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, inputs: Shape, outputs: Shape, grid: Grid) -> nn.Module:
        return cls(inputs, outputs, grid, options.width)

    @classmethod
    def parity_grid(cls, code: Code) -> Grid:
        """Return the grid of pooling cells: finer where the encoder overlays images, so that the
        network can tell where a feature is."""
        return super().parity_grid(code) if code.encoder.apart else places(code.parity_shape)

    @classmethod
    def ladder(cls, query_shape: Shape) -> tuple[str, ...]:
        return (f"{cls.name}@0.5", cls.name) if is_small(query_shape) else ()

    def __init__(
        self,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        grid: tuple[int, int] = (1, 1),
        width: float = 1.0,
    ) -> None:
        super().__init__()
        rows, columns = grid
        if (
            len(input_shape) != 3
            or input_shape[1] < SMALLEST * rows
            or input_shape[2] < SMALLEST * columns
        ):
            raise TrainingError(
                "resnet-small takes images of shape (channels, height, width), at least "
                f"{SMALLEST * rows}x{SMALLEST * columns} here, not inputs of shape "
                f"{input_shape}; use mlp"
            )
        self.output_shape = output_shape
        self.grid = grid
        self.channels = [times(width, each) for each in STAGES]
        self.stem = convolution(input_shape[0], self.channels[0], (3, 3))
        self.stages = residual_stages(self.channels, (3, 3), (2, 2))
        self.head = nn.Linear(self.channels[-1] * rows * columns, prod(output_shape))

    def forward(self, input: Tensor) -> Tensor:
        return self.leave(self.stages(self.enter(input)))

    def enter(self, input: Tensor) -> Tensor:
        """The input of the stages, from images."""
        return functional.relu(self.stem(input))

    def leave(self, features: Tensor) -> Tensor:
        """The network's outputs, from the output of the stages."""
        pooled = functional.adaptive_avg_pool2d(features, self.grid)
        output: Tensor = self.head(pooled.flatten(1))
        return output.reshape(-1, *self.output_shape)


def residual_stages(channels: Sequence[int], size: Pair, stride: Pair) -> nn.Sequential:
    """One residual block for each number of `channels`; the first block keeps its number.

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
    """A padded convolution and its normalisation."""
    rows, columns = size
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, padding=(rows // 2, columns // 2), bias=False),
        nn.BatchNorm2d(after),
    )
