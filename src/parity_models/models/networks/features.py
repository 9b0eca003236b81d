"""A network for rows of features: categories and numbers, in any inputs."""

from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from parity_models.errors import TrainingError
from parity_models.models.networks.images import Shape
from parity_models.models.networks.network import Effort, NamedModule, NamedNetwork
from parity_models.models.networks.queried import Queried, QueriedInput
from parity_models.options import Option

MOST_COLUMNS = 256
"""Integers in a row beyond these are no features, but a sequence."""

MOST_VALUES = 2**20
"""Integers that go farther are numbers, not categories."""


class Features(NamedNetwork):
    """A vector for each category, numbers in deviations, and a perceptron of one hidden layer.

    Takes any inputs of fixed shape. Integers from 0 are categories, each column with vectors of
    its own; a category that no query held has one vector more. All others are numbers.
    """

    name = "features"
    deployed = Effort(20, 256, 3e-3, 5e-2, mirror=False, threaded=False)
    parity = Effort(20, 256, 3e-3, 5e-2, mirror=False, threaded=False)
    proposed = ("features@16", "features", "features@256")

    @dataclass(frozen=True, kw_only=True)
    class Options(NamedNetwork.Options):
        """What can be set."""

        units: Annotated[int, Option("Units of the hidden layer.", at_least=1, at_most=4096)] = 64
        width: Annotated[
            int, Option("Numbers that a category's vector holds.", at_least=1, at_most=256)
        ] = 16

    @classmethod
    def takes(cls, queried: Queried) -> bool:
        whole = [prod(_shape(each)) for each in queried if each.whole and not each.tensor.axes]
        return not any(each.tensor.axes for each in queried) and sum(whole) <= MOST_COLUMNS

    @classmethod
    def build_named(cls, options: Any, queried: Queried, outputs: Shape) -> NamedModule:
        if not cls.takes(queried):
            raise TrainingError(
                f"features takes inputs of fixed shape, with at most {MOST_COLUMNS} integers in a "
                f"row, not {queried}"
            )
        return FeaturePerceptron(options, queried, outputs)


def _shape(input: QueriedInput) -> tuple[int, ...]:
    return tuple(each for each in input.tensor.shape if isinstance(each, int))


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
        self.categories = [i for i, each in enumerate(queried) if _is_category(each)]
        self.numbers = [i for i in range(len(queried)) if i not in self.categories]
        most = _joined([queried[i].highest for i in self.categories]).long() + 1
        sizes = most + 1
        self.register_buffer("most", most)
        self.register_buffer("begins", sizes.cumsum(0) - sizes)
        self.register_buffer("mean", _joined([queried[i].mean for i in self.numbers]))
        deviations = _joined([queried[i].deviation for i in self.numbers])
        self.register_buffer("inverse", 1 / deviations)
        self.embed = nn.Embedding(int(sizes.sum()), options.width) if len(sizes) else None
        entering = len(sizes) * options.width + len(self.mean)
        self.layers = nn.Sequential(
            nn.Linear(entering, options.units),
            nn.ReLU(),
            nn.Linear(options.units, prod(outputs)),
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = []
        if self.embed is not None:
            ids = torch.cat(
                [inputs[i].reshape(inputs[i].shape[0], -1).long() for i in self.categories], dim=1
            )
            known = torch.minimum(ids.clamp(min=0), self.most) + self.begins
            parts.append(self.embed(known).flatten(1))
        if self.numbers:
            numbers = torch.cat(
                [inputs[i].reshape(inputs[i].shape[0], -1).float() for i in self.numbers], dim=1
            )
            parts.append((numbers - self.mean) * self.inverse)
        outputs: Tensor = self.layers(torch.cat(parts, dim=1))
        return outputs.reshape(-1, *self.outputs)


def _joined(arrays: list[Any]) -> Tensor:
    flat = [torch.as_tensor(each).flatten() for each in arrays]
    return torch.cat(flat).float() if flat else torch.zeros(0)
