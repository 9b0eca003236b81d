"""The cheapest network there is."""

from math import prod
from typing import Any

from torch import Tensor, nn

from parity_models.models.networks.images import Shape
from parity_models.models.networks.network import Effort, FullLayers, Plain


class Linear(FullLayers, Plain, nn.Module):
    """One full layer, without any hidden: multinomial logistic regression.

    Takes inputs of any shape, flattened: (n, *input_shape) to (n, *output_shape).
    """

    name = "linear"
    deployed = Effort(20, 256, 2e-3, 5e-2, mirror=False, threaded=False)
    parity = Effort(30, 256, 4e-3, 5e-2, mirror=False, threaded=False)

    @classmethod
    def slot_by_slot(cls, options: Any) -> bool:
        """One layer on all slots can do what it would do on each, and more."""
        return False

    @classmethod
    def ladder(cls, query_shape: Shape) -> tuple[str, ...]:
        return (cls.name,)

    def __init__(self, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.output_shape = output_shape
        self.layer = nn.Linear(prod(input_shape), prod(output_shape))

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.layer(input.flatten(1))
        if len(self.output_shape) == 1:  # reshaping to the same shape takes time, too
            return output
        return output.reshape(-1, *self.output_shape)
