"""A small residual network for sequences: sensors, sounds, prices over time."""

from math import prod

from torch import Tensor, nn
from torch.nn import functional

from parity_models.errors import TrainingError
from parity_models.models.networks.images import Shape, as_images, image_shape
from parity_models.models.networks.network import Convolutional, Effort, times
from parity_models.models.networks.resnet import convolution, residual_stages

STAGES = (32, 64, 128)
"""Channels of each stage; all but the first halve the steps."""

SIZE = 5
"""Steps that a convolution sees at once."""

LEAST_STEPS = 8


class SequenceResNet(Convolutional, nn.Module):
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
    def ladder(cls, query_shape: Shape) -> tuple[str, ...]:
        return (f"{cls.name}@0.5", cls.name) if len(query_shape) == 2 else ()

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
        channels = [times(width, each) for each in STAGES]
        self.stem = convolution(image[0], channels[0], (1, SIZE))
        self.stages = residual_stages(channels, (1, SIZE), (1, 2))
        self.head = nn.Linear(channels[-1], prod(output_shape))

    def forward(self, input: Tensor) -> Tensor:
        images = as_images(input, self.input_shape)
        features = self.stages(functional.relu(self.stem(images)))
        output: Tensor = self.head(features.mean((2, 3)))
        return output.reshape(-1, *self.output_shape)
