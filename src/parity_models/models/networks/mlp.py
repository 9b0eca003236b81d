"""The published multi-layer perceptron."""

from math import prod
from typing import Any

from torch import Tensor, nn

from parity_models.models.networks.images import Shape, is_small
from parity_models.models.networks.network import Effort, FullLayers, Scalable, times


class MLP(FullLayers, Scalable, nn.Module):
    """Two hidden layers of 200 and 100 units, times `width`.

    (Kosaian et al., SOSP 2019, section 4.1.) Takes inputs of any shape, flattened:
    (n, *input_shape) to (n, *output_shape).
    """

    name = "mlp"
    deployed = Effort(30, 256, 2e-3, 5e-2, mirror=True, threaded=False)
    parity = Effort(60, 256, 4e-3, 5e-2, mirror=False, threaded=False)

    @classmethod
    def slot_by_slot(cls, options: Any) -> bool:
        """The published network sees all slots at once, as its results are of; others do not."""
        return bool(options.width != 1)

    @classmethod
    def ladder(cls, query_shape: Shape) -> tuple[str, ...]:
        if len(query_shape) == 3 and not is_small(query_shape):
            return ()
        return (*(f"{cls.name}@{width}" for width in (0.25, 0.5, 0.7)), cls.name)

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
