"""Networks of fully connected layers, for inputs of any shape."""

from math import prod
from typing import Any

from torch import Tensor, nn

from parity_models.training.networks.network import Effort, Network, Scalable, is_small, times
from parity_models.training.networks.queried import Queried, Shape


def shaped(output: Tensor, shape: Shape) -> Tensor:
    """Return outputs (n, values) as (n, *shape)."""
    if len(shape) == 1:  # reshaping to the same shape takes time, too
        return output
    return output.reshape(-1, *shape)


class Linear(nn.Module, Network):
    """One fully connected layer: multinomial logistic regression, the cheapest network there is."""

    name = "linear"
    deployed = Effort(20, 256, 2e-3, 5e-2, mirror=False, threaded=False)
    parity = Effort(30, 256, 4e-3, 5e-2, mirror=False, threaded=False)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        return cls(queried.shape, outputs)

    @classmethod
    def slot_by_slot(cls, options: Any) -> bool:
        """Return False: one layer on all slots can do more than one on each."""
        return False

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        return (cls.name,) if queried.is_array else ()

    def __init__(self, input_shape: Shape, output_shape: Shape) -> None:
        super().__init__()
        self.output_shape = output_shape
        self.layer = nn.Linear(prod(input_shape), prod(output_shape))

    def forward(self, input: Tensor) -> Tensor:
        return shaped(self.layer(input.flatten(1)), self.output_shape)


class MLP(nn.Module, Scalable):
    """The published perceptron: two hidden layers of 200 and 100 units, times `width`.

    (Kosaian et al., SOSP 2019, section 4.1.)
    """

    name = "mlp"
    deployed = Effort(30, 256, 2e-3, 5e-2, mirror=True, threaded=False)
    parity = Effort(60, 256, 4e-3, 5e-2, mirror=False, threaded=False)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        return cls(queried.shape, outputs, options.width)

    @classmethod
    def slot_by_slot(cls, options: Any) -> bool:
        """Return False for the published network, which sees all slots at once."""
        return bool(options.width != 1)

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        if not queried.is_array or (len(queried.shape) == 3 and not is_small(queried.shape)):
            return ()
        return (*(f"{cls.name}@{width}" for width in (0.25, 0.5)), cls.name)

    def __init__(self, input_shape: Shape, output_shape: Shape, width: float = 1.0) -> None:
        super().__init__()
        self.output_shape = output_shape
        first, second = times(width, 200), times(width, 100)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(prod(input_shape), first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Linear(second, prod(output_shape)),
        )

    def forward(self, input: Tensor) -> Tensor:
        return shaped(self.layers(input), self.output_shape)
