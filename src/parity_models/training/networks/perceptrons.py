"""Networks of fully connected layers, for inputs of any shape."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

from torch import nn

from parity_models.training.networks.network import Effort, Network, Scalable, is_small, times
from parity_models.training.networks.queried import Queried, Shape


class Perceptron(nn.Sequential):
    """Fully connected layers with ReLU between them: (n, *inputs) to (n, *outputs)."""

    def __init__(self, inputs: Shape, hidden: Sequence[int], outputs: Shape) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise([prod(inputs), *hidden, prod(outputs)]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        layers.pop()
        if not outputs:
            layers.append(nn.Flatten(0))
        elif len(outputs) > 1:  # reshaping to the same shape takes time, too
            layers.append(nn.Unflatten(1, outputs))
        super().__init__(*layers)


class Linear(Network):
    """One fully connected layer: multinomial logistic regression, the cheapest network there is."""

    name = "linear"
    deployed = Effort(20, 256, 2e-3, 5e-2, mirror=False, threaded=False)
    parity = Effort(30, 256, 4e-3, 5e-2, mirror=False, threaded=False)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        return Perceptron(queried.shape, (), outputs)

    @classmethod
    def slot_by_slot(cls, options: Any) -> bool:
        """Return False: one layer on all slots can do more than one on each."""
        return False

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        return (cls.name,) if queried.is_array else ()


class MLP(Scalable):
    """The published perceptron: two hidden layers of 200 and 100 units, times `width`.

    (Kosaian et al., SOSP 2019, section 4.1.)
    """

    name = "mlp"
    deployed = Effort(30, 256, 2e-3, 5e-2, mirror=True, threaded=False)
    parity = Effort(60, 256, 4e-3, 5e-2, mirror=False, threaded=False)

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        hidden = [times(options.width, units) for units in (200, 100)]
        return Perceptron(queried.shape, hidden, outputs)

    @classmethod
    def slot_by_slot(cls, options: Any) -> bool:
        """Return False for the published network, which sees all slots at once."""
        return bool(options.width != 1)

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        if not queried.is_array or (len(queried.shape) == 3 and not is_small(queried.shape)):
            return ()
        return (*(f"{cls.name}@{width}" for width in (0.25, 0.5)), cls.name)
