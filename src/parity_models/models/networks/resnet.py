"""A small residual network for small images."""

from math import prod

from torch import Tensor, nn
from torch.nn import functional

from parity_models.errors import TrainingError

STAGES = (16, 32, 64)
"""Channels of each stage; all but the first halve height and width."""


class SmallResNet(nn.Module):
    """Three stages of one residual block with 16, 32 and 64 channels (He et al., CVPR 2016).

    Takes images (n, channels, height, width), gives (n, *output_shape). The last feature map is
    averaged over each cell of `grid` (rows, columns), by default over the whole image.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        grid: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        rows, columns = grid
        smallest = 2 ** (len(STAGES) - 1)
        if (
            len(input_shape) != 3
            or input_shape[1] < smallest * rows
            or input_shape[2] < smallest * columns
        ):
            raise TrainingError(
                "resnet-small takes images of shape (channels, height, width), at least "
                f"{smallest * rows}x{smallest * columns} here, not inputs of shape "
                f"{input_shape}; use mlp"
            )
        self.output_shape = output_shape
        self.grid = grid
        self.stem = _convolution(input_shape[0], STAGES[0], 3, 1)
        widths = zip((STAGES[0], *STAGES), STAGES, strict=False)
        self.stages = nn.Sequential(
            *(_Block(before, after, 1 if i == 0 else 2) for i, (before, after) in enumerate(widths))
        )
        self.head = nn.Linear(STAGES[-1] * rows * columns, prod(output_shape))

    def forward(self, input: Tensor) -> Tensor:
        features = self.stages(functional.relu(self.stem(input)))
        pooled = functional.adaptive_avg_pool2d(features, self.grid)
        output: Tensor = self.head(pooled.flatten(1))
        return output.reshape(-1, *self.output_shape)


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(before, after, 3, stride)
        self.second = _convolution(after, after, 3, 1)
        self.shortcut = (
            nn.Identity()
            if before == after and stride == 1
            else _convolution(before, after, 1, stride)
        )

    def forward(self, input: Tensor) -> Tensor:
        inner = self.second(functional.relu(self.first(input)))
        return functional.relu(inner + self.shortcut(input))


def _convolution(before: int, after: int, size: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(after),
    )
