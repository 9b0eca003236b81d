"""LeNet-5 for images of any size that survives its two poolings."""

from math import prod

from torch import Tensor, nn

from parity_models.errors import TrainingError
from parity_models.models.networks.images import Shape, is_small
from parity_models.models.networks.network import Convolutional, Effort, times

SMALLEST = 12


class LeNet5(Convolutional, nn.Module):
    """Two convolutions and three full layers (LeCun et al., 1998), with ReLU and max pooling.

    Takes images (n, channels, height, width) of at least 12x12, gives (n, *output_shape). For
    28x28 its layers have the sizes of the original, times `width`: the first convolution pads to
    32x32.
    """

    name = "lenet5"
    deployed = Effort(20, 256, 4e-3, 5e-2, mirror=True, threaded=True)
    parity = Effort(30, 256, 4e-3, 5e-2, mirror=True, threaded=True)

    @classmethod
    def ladder(cls, query_shape: Shape) -> tuple[str, ...]:
        return (cls.name,) if is_small(query_shape) else ()

    def __init__(
        self, input_shape: tuple[int, ...], output_shape: tuple[int, ...], width: float = 1.0
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < SMALLEST:
            raise TrainingError(
                "lenet5 takes images of shape (channels, height, width), at least "
                f"{SMALLEST}x{SMALLEST}, not inputs of shape {input_shape}; use mlp or, for "
                "small images, resnet-small"
            )
        channels, rows, columns = input_shape
        first, second, third, fourth = (times(width, units) for units in (6, 16, 120, 84))
        self.output_shape = output_shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * _left(rows) * _left(columns), third),
            nn.ReLU(),
            nn.Linear(third, fourth),
            nn.ReLU(),
            nn.Linear(fourth, prod(output_shape)),
        )

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.layers(input)
        return output.reshape(-1, *self.output_shape)


def _left(length: int) -> int:
    return (length // 2 - 4) // 2
