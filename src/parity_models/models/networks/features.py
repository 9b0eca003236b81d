"""A network for rows of features: categories and numbers, in any inputs."""

from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from parity_models.errors import TrainingError
from parity_models.models.networks.network import Effort, NamedModule, Network
from parity_models.models.networks.queried import Queried, QueriedInput, Shape
from parity_models.options import Option

MOST_COLUMNS = 256
"""A row with more integers than these is a sequence, not a row of features."""

WIDTH = 16
"""Numbers that a category's vector holds."""

MOST_VALUES = 2**20
"""Integers with a wider range are numbers, not categories."""


class Features(Network):
    """A vector for each category, numbers in deviations, and a perceptron of one hidden layer.

    Takes any inputs of fixed shape. Integers from 0 are categories, each column with vectors of
    its own; a category that no query held has one vector more. All others are numbers.
    """

    name = "features"
    deployed = Effort(20, 256, 3e-3, 5e-2, mirror=False, threaded=False)
    parity = Effort(20, 256, 3e-3, 5e-2, mirror=False, threaded=False)

    @dataclass(frozen=True, kw_only=True)
    class Options(Network.Options):
        """The size of the hidden layer."""

        units: Annotated[int, Option("Units of the hidden layer.", at_least=1, at_most=4096)] = 64

    @classmethod
    def takes(cls, queried: Queried) -> bool:
        """Return whether it can learn from such queries: records, not one array."""
        fixed = [each.tensor.fixed for each in queried.inputs]
        if queried.is_array or None in fixed:
            return False
        columns = [prod(each.shape) for each in fixed if each and each.dtype.kind in "iub"]
        return sum(columns) <= MOST_COLUMNS

    @classmethod
    def proposals(cls, queried: Queried) -> tuple[str, ...]:
        return ("features@16", "features", "features@256") if cls.takes(queried) else ()

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> NamedModule:
        if not cls.takes(queried):
            raise TrainingError(
                f"features takes several inputs of fixed shape, with at most {MOST_COLUMNS} "
                f"integers in a row, not {queried}"
            )
        return FeaturePerceptron(options, queried, outputs)


def _is_category(input: QueriedInput) -> bool:
    return input.whole and input.low >= 0 and input.high < MOST_VALUES


class FeaturePerceptron(NamedModule):
    """The inputs, in their order, to (n, *outputs)."""

    most: Tensor
    begins: Tensor
    mean: Tensor
    inverse: Tensor

    def __init__(self, options: Features.Options, queried: Queried, outputs: Shape) -> None:
        super().__init__()
        self.outputs = outputs
        inputs = queried.inputs
        self.categories = [i for i, each in enumerate(inputs) if _is_category(each)]
        self.numbers = [i for i in range(len(inputs)) if i not in self.categories]
        most = _joined([inputs[i].highest for i in self.categories]).long() + 1
        sizes = most + 1
        self.register_buffer("most", most)
        self.register_buffer("begins", sizes.cumsum(0) - sizes)
        self.register_buffer("mean", _joined([inputs[i].mean for i in self.numbers]))
        deviations = _joined([inputs[i].deviation for i in self.numbers])
        self.register_buffer("inverse", 1 / deviations)
        self.embed = nn.Embedding(int(sizes.sum()), WIDTH) if len(sizes) else None
        entering = len(sizes) * WIDTH + len(self.mean)
        self.layers = nn.Sequential(
            nn.Linear(entering, options.units),
            nn.ReLU(),
            nn.Linear(options.units, prod(outputs)),
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = []
        if self.embed is not None:
            ids = _columns([inputs[i].long() for i in self.categories])
            known = torch.minimum(ids.clamp(min=0), self.most) + self.begins
            parts.append(self.embed(known).flatten(1))
        if self.numbers:
            numbers = _columns([inputs[i].float() for i in self.numbers])
            parts.append((numbers - self.mean) * self.inverse)
        outputs: Tensor = self.layers(torch.cat(parts, dim=1))
        return outputs.reshape(-1, *self.outputs)


def _columns(inputs: list[Tensor]) -> Tensor:
    """Return inputs (n, ...) side by side: (n, columns)."""
    return torch.cat([each.reshape(each.shape[0], -1) for each in inputs], dim=1)


def _joined(arrays: list[Any]) -> Tensor:
    flat = [torch.as_tensor(each).flatten() for each in arrays]
    return torch.cat(flat).float() if flat else torch.zeros(0)
