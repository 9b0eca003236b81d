"""Networks from an image to a map of its size, as networks of one's own."""

from torch import Tensor, nn

SCALE = 4
"""A cell of the last maps stands for a square of so many pixels."""


def _convolution(channels: int, following: int, stride: int = 1, reach: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, following, 3, stride, reach, dilation=reach, bias=False),
        nn.BatchNorm2d(following),
        nn.ReLU(),
    )


class _Residual(nn.Module):
    def __init__(self, channels: int, reach: int) -> None:
        super().__init__()
        self.within = _convolution(channels, channels, reach=reach)

    def forward(self, maps: Tensor) -> Tensor:
        added: Tensor = maps + self.within(maps)
        return added


class Map(nn.Sequential):
    """Images (n, channels, height, width) to (n, outputs, height, width): two halvings, layers that
    look further and further around, and a square of pixels for each cell."""

    channels: int

    def __init__(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
        wide = self.channels
        super().__init__(
            _convolution(input_shape[0], wide // 2, stride=2),
            _convolution(wide // 2, wide, stride=2),
            *(_Residual(wide, reach) for reach in (1, 2, 4, 1)),
            nn.Conv2d(wide, SCALE**2 * output_shape[0], 1),
            nn.PixelShuffle(SCALE),
        )


class SmallMap(Map):
    """A few operations a pixel."""

    channels = 16


class LargeMap(Map):
    """Four times as many."""

    channels = 32
