"""The published multi-layer perceptron."""

from math import prod

from torch import Tensor, nn

from parity_models.models.networks.network import Effort, Scalable, times


class MLP(Scalable, nn.Module):
    """Two hidden layers of 200 and 100 units, times `width`.

    (Kosaian et al., SOSP 2019, section 4.1.) Takes inputs of any shape, flattened:
    (n, *input_shape) to (n, *output_shape).
    """

    name = "mlp"
    deployed = Effort(30, 256, 2e-3, 5e-2, mirror=True, threaded=False)
    parity = Effort(60, 256, 4e-3, 5e-2, mirror=False, threaded=False)

    def __init__(
        self, input_shape: tuple[int, ...], output_shape: tuple[int, ...], width: float = 1.0
    ) -> None:
        super().__init__()
        first, second = times(width, 200), times(width, 100)
        self.output_shape = output_shape
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(prod(input_shape), first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Linear(second, prod(output_shape)),
        )

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.layers(input)
        if len(self.output_shape) == 1:  # reshaping to the same shape takes time, too
            return output
        return output.reshape(-1, *self.output_shape)
