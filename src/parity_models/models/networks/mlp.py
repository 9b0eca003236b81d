"""The published multi-layer perceptron."""

from math import prod

from torch import Tensor, nn


class MLP(nn.Module):
    """Two hidden layers of 200 and 100 units (Kosaian et al., SOSP 2019, section 4.1).

    Takes inputs of any shape, flattened: (n, *input_shape) to (n, *output_shape).
    """

    def __init__(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.output_shape = output_shape
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(prod(input_shape), 200),
            nn.ReLU(),
            nn.Linear(200, 100),
            nn.ReLU(),
            nn.Linear(100, prod(output_shape)),
        )

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.layers(input)
        return output.reshape(-1, *self.output_shape)
