"""A network that is a polynomial, for codes that are exact for polynomials."""

from math import prod

from torch import Tensor, nn

from parity_models.models.networks.network import Effort, Plain

UNITS = 64


class Quadratic(Plain, nn.Module):
    """One hidden layer of 64 units that are squared: a polynomial of degree 2.

    (Squares as activations: Gilad-Bachrach et al., CryptoNets, ICML 2016.) Takes inputs of any
    shape, flattened: (n, *input_shape) to (n, *output_shape).
    """

    name = "quadratic"
    deployed = Effort(30, 256, 2e-3, 5e-2, mirror=False, threaded=False)
    parity = Effort(60, 256, 4e-3, 5e-2, mirror=False, threaded=False)

    def __init__(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.output_shape = output_shape
        self.hidden = nn.Linear(prod(input_shape), UNITS)
        self.last = nn.Linear(UNITS, prod(output_shape))

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.last(self.hidden(input.flatten(1)).square())
        return output.reshape(-1, *self.output_shape)
