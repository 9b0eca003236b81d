"""LeNet-5 for images of any size that survives its two poolings."""

from math import prod

from torch import Tensor, nn

from parity_models.errors import TrainingError

SMALLEST = 12


class LeNet5(nn.Module):
    """Two convolutions and three full layers (LeCun et al., 1998), with ReLU and max pooling.

    Takes images (n, channels, height, width) of at least 12x12, gives (n, *output_shape). For
    28x28 its layers have the sizes of the original: the first convolution pads to 32x32.
    """

    def __init__(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < SMALLEST:
            raise TrainingError(
                "lenet5 takes images of shape (channels, height, width), at least "
                f"{SMALLEST}x{SMALLEST}, not inputs of shape {input_shape}; use mlp or, for "
                "small images, resnet-small"
            )
        channels, height, width = input_shape
        self.output_shape = output_shape
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * _left(height) * _left(width), 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, prod(output_shape)),
        )

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.layers(input)
        return output.reshape(-1, *self.output_shape)


def _left(length: int) -> int:
    return (length // 2 - 4) // 2
