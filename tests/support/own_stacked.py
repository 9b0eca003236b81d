"""A network of somebody's own that says itself how it is built for a code."""

from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from parity_models.codes import Code
from parity_models.errors import TrainingError
from parity_models.models.networks import Effort, Network
from parity_models.models.networks.network import Stacked
from parity_models.models.networks.queried import Grid, Queried, Shape
from parity_models.options import Option

LARGEST = 6


class Attending(Network):
    """Small images of a group, each a part of what the answers to all are made of."""

    name = "attending"
    parity = Effort(3, 64, 1e-3, 0.0, mirror=False, threaded=False)

    @dataclass(frozen=True, kw_only=True)
    class Options(Network.Options):
        """What can be set."""

        units: Annotated[int, Option("Units of an image.", at_least=1)] = 8

    @classmethod
    def build(cls, options: Any, queried: Queried, outputs: Shape) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(prod(queried.shape), prod(outputs)), nn.Unflatten(1, outputs)
        )

    @classmethod
    def parity_grid(cls, code: Code) -> Grid:
        return code.k, 1

    @classmethod
    def build_parity(cls, options: Any, code: Code, grid: Grid) -> nn.Module:
        if code.k > LARGEST:
            raise TrainingError(f"attending takes {LARGEST} images at most, not {code.k}")
        assert grid == (code.k, 1)
        return Group(options.units, code)


class Group(Stacked):
    """Images (n, k, *shape), flattened, to (n, k, *outputs)."""

    def __init__(self, units: int, code: Code) -> None:
        super().__init__()
        self.k = code.k
        self.first = nn.Linear(prod(code.query_shape), units)
        self.second = nn.Linear(code.k * units, code.k * units)
        self.last = nn.Linear(units, prod(code.output_shape))
        self.outputs = code.output_shape

    def forward(self, input: Tensor) -> Tensor:
        each = self.first(input.reshape(-1, self.k, self.first.in_features)).relu()
        mixed = self.second(each.flatten(1)).relu().reshape(-1, self.k, self.last.in_features)
        outputs: Tensor = self.last(mixed)
        return outputs.reshape(-1, self.k, *self.outputs)

    @torch.no_grad()
    def start_from(self, deployed: nn.Module, *, first: bool) -> bool:
        if first:
            self.last.bias.fill_(7.0)
        return first


class Plain(Network):
    """As `Attending`, but without a word of codes."""

    name = "plain"
    build = Attending.build
    Options = Attending.Options


ATTENDING, PLAIN = f"{__name__}:Attending", f"{__name__}:Plain"
