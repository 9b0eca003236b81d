"""The cheapest network there is."""

from math import prod

from torch import Tensor, nn


class Linear(nn.Module):
    """One full layer, without any hidden: multinomial logistic regression.

    Takes inputs of any shape, flattened: (n, *input_shape) to (n, *output_shape).
    """

    def __init__(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.output_shape = output_shape
        self.layer = nn.Linear(prod(input_shape), prod(output_shape))

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.layer(input.flatten(1))
        return output.reshape(-1, *self.output_shape)
