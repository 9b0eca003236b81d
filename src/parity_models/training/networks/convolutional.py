"""Residual networks for images (He et al., CVPR 2016)."""

from collections.abc import Sequence
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


class SmallResNet(Scalable):
    """A residual network for small images (n, channels, height, width).

    Three stages of one residual block, of 16, 32 and 64 channels times `width`; the second and
    third halve the feature map. It is averaged over each cell of the grid in the end.
    """

    name = "resnet-small"
    deployed = Effort(6, 128, 1e-2, 5e-2, mirror=True, threaded=True)
    parity = Effort(10, 64, 1e-2, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        channels = check_image(queried.shape, queried.grid, cls.name, SMALLEST)[0]
        units = [times(options.width, each) for each in (16, 32, 64)]
        return ResidualNetwork(channels, units, (1, 1, 1), outputs, queried.grid)

    @classmethod
    def parity_grid(cls, code: Code) -> Grid:
        """Return the grid of pooling cells: finer where the encoder overlays images, so that the
        network knows where a feature is."""
        return super().parity_grid(code) if code.encoder.apart else places(code.parity_shape)

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        small = queried.is_array and is_small(queried.shape)
        return (f"{cls.name}@0.5", cls.name) if small else ()


def convolution(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Return a padded convolution and its normalisation."""
    return nn.Sequential(
        nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(after),
    )


class ResidualNetwork(nn.Module):
    """A residual network of torchvision's blocks: (n, channels, height, width) to (n, *outputs).

    Its stages have these `units`, channels times the block's expansion, and numbers of `blocks`;
    each but the first halves the feature map. The last one is averaged over each cell of `grid`. If
    it `shrinks` images, its first layers quarter their sides.
    """

    def __init__(
        self,
        channels: int,
        units: Sequence[int],
        blocks: Sequence[int],
        outputs: Shape,
        grid: Grid,
        *,
        block: type[resnet.BasicBlock] | type[resnet.Bottleneck] = resnet.BasicBlock,
        shrinks: bool = False,
    ) -> None:
        super().__init__()
        self.outputs, self.grid, self.shrinks, before = outputs, grid, shrinks, units[0]
        self.stem = convolution(channels, before, *((7, 2) if shrinks else (3, 1)))
        self.stages = nn.Sequential()
        for planes, count in zip(units, blocks, strict=True):
            stage, after = nn.Sequential(), planes * block.expansion
            for number in range(count):
                stride = 2 if self.stages and not number else 1
                stage.append(made := block(before, planes, stride))
                if before != after or stride != 1:
                    made.downsample = convolution(before, after, 1, stride)
                before = after
            self.stages.append(stage)
        self.head = nn.Linear(before * prod(grid), prod(outputs))

    def forward(self, input: Tensor) -> Tensor:
        features = functional.relu(self.stem(input))
        if self.shrinks:
            features = functional.max_pool2d(features, 3, 2, padding=1)
        pooled = functional.adaptive_avg_pool2d(self.stages(features), self.grid)
        output: Tensor = self.head(pooled.flatten(1))
        return output.reshape(-1, *self.outputs)


def deep_network(
    name: str,
    block: type[resnet.BasicBlock] | type[resnet.Bottleneck],
    blocks: Sequence[int],
    width: float,
    queried: Queried,
    outputs: Shape,
) -> nn.Module:
    """Return a residual network of four stages, from 64 channels times `width` on: a quarter of the
    channels costs about a sixteenth. Raises TrainingError for queries other than images."""
    channels, *size = check_image(queried.shape, queried.grid, name)
    network = ResidualNetwork(
        channels,
        [times(width, 64 * 2**stage) for stage in range(4)],
        blocks,
        outputs,
        queried.grid,
        block=block,
        shrinks=min(size) >= SMALL,
    )
    for each in network.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.kaiming_normal_(each.weight, mode="fan_out", nonlinearity="relu")
    return network


class ResNet18(Scalable):
    """ResNet-18: two basic blocks in each of four stages."""

    name = "resnet18"
    deployed = Effort(10, 128, 4e-3, 5e-2, mirror=True, threaded=True)
    parity = Effort(10, 64, 4e-3, 5e-2, mirror=True, threaded=True)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        blocks, width = (2, 2, 2, 2), options.width
        return deep_network(cls.name, resnet.BasicBlock, blocks, width, queried, outputs)

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
