"""ResNet-20 for CIFAR (He et al., CVPR 2016, section 4.2), as a network of your own."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

BLOCKS = 3
"""Residual blocks in each stage."""


class Block(nn.Module):
    """Maps (n, channels, height, width) to as many channels, or twice as many at half the size."""

    def __init__(self, channels: int, following: int) -> None:
        super().__init__()
        stride = following // channels
        self.first = nn.Sequential(
            nn.Conv2d(channels, following, 3, stride, 1, bias=False),
            nn.BatchNorm2d(following),
            nn.ReLU(),
            nn.Conv2d(following, following, 3, 1, 1, bias=False),
            nn.BatchNorm2d(following),
        )
        same = channels == following
        self.past = nn.Identity() if same else nn.Conv2d(channels, following, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        return functional.relu(self.first(maps) + self.past(maps))


class ResNet20(nn.Sequential):
    """Maps images (n, channels, height, width) to (n, outputs)."""

    def __init__(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
        widths = [16, *[16] * BLOCKS, *[32] * BLOCKS, *[64] * BLOCKS]
        super().__init__(
            nn.Conv2d(input_shape[0], 16, 3, 1, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            *(Block(*pair) for pair in pairwise(widths)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, output_shape[0]),
        )
