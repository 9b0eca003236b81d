"""A network for long rows of small integers, as the bytes of files."""

from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

from torch import Tensor, nn
from torch.nn import functional

from parity_models.errors import TrainingError
from parity_models.models.networks.images import Shape
from parity_models.models.networks.network import Effort, NamedModule, NamedNetwork
from parity_models.models.networks.queried import Queried, QueriedInput
from parity_models.options import Option

SHORTEST = 64
"""Integers in a row at least."""

MOST_VALUES = 4096
"""Different integers at most."""

WINDOW = 5
"""Blocks that a convolution sees at once."""


class Bytes(NamedNetwork):
    """Vectors of small integers, joined in blocks, a convolution over these, the largest value of
    each channel in each part of the row, and a perceptron.

    (After MalConv: Raff et al., 2018.) Takes one input of integers (n, length), of fixed length.
    """

    name = "bytes"
    deployed = Effort(20, 64, 2e-3, 5e-2, mirror=False, threaded=True)
    parity = Effort(20, 64, 2e-3, 5e-2, mirror=False, threaded=True)
    proposed = ("bytes@32", "bytes@64", "bytes")

    @dataclass(frozen=True, kw_only=True)
    class Options(NamedNetwork.Options):
        """What can be set."""

        channels: Annotated[
            int, Option("Channels of the convolution.", at_least=1, at_most=1024)
        ] = 128
        block: Annotated[
            int, Option("Integers that are joined in a block.", at_least=1, at_most=64)
        ] = 4
        parts: Annotated[
            int, Option("Parts of a row that are looked at apart.", at_least=1, at_most=32)
        ] = 2
        width: Annotated[
            int, Option("Numbers that an integer's vector holds.", at_least=1, at_most=64)
        ] = 12
        units: Annotated[int, Option("Units of the hidden layer.", at_least=1, at_most=4096)] = 256

    @classmethod
    def takes(cls, queried: Queried) -> bool:
        return _row(queried) is not None

    @classmethod
    def build_named(cls, options: Any, queried: Queried, outputs: Shape) -> NamedModule:
        at = _row(queried)
        if at is None:
            raise TrainingError(
                f"bytes takes one input of integers (n, length), {SHORTEST} or more, from 0 to "
                f"{MOST_VALUES - 1}, not {', '.join(str(each.tensor) for each in queried)}"
            )
        return ByteConvolution(options, queried[at], at, outputs)


def _row(queried: Queried) -> int | None:
    """Which input holds the integers, if the others say nothing."""
    told = [i for i, each in enumerate(queried) if not each.constant]
    if len(told) != 1:
        return None
    row = queried[told[0]]
    length = row.tensor.shape[0] if len(row.tensor.shape) == 1 else None
    fits = row.whole and row.low >= 0 and row.values <= MOST_VALUES
    return told[0] if fits and isinstance(length, int) and length >= SHORTEST else None


class ByteConvolution(NamedModule):
    """The integers, at place `at` of the inputs, to (n, *outputs)."""

    def __init__(self, options: Bytes.Options, row: QueriedInput, at: int, outputs: Shape) -> None:
        super().__init__()
        self.options, self.at, self.outputs, self.values = options, at, outputs, row.values
        self.embed = nn.Embedding(row.values + 1, options.width)
        taken = options.block * options.width
        self.convolve = nn.Conv1d(taken, options.channels, WINDOW, padding=WINDOW // 2)
        found = options.parts * options.channels
        self.layers = nn.Sequential(
            nn.LayerNorm(found),
            nn.Linear(found, options.units),
            nn.ReLU(),
            nn.Linear(options.units, prod(outputs)),
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        options = self.options
        row = inputs[self.at].long().clamp(0, self.values)
        beyond = -row.shape[1] % (options.block * options.parts)
        if beyond:
            row = functional.pad(row, (0, beyond), value=self.values)
        blocks = self.embed(row).reshape(row.shape[0], -1, options.block * options.width)
        seen = self.convolve(blocks.transpose(1, 2)).relu()
        largest = seen.unflatten(2, (options.parts, -1)).amax(dim=3).flatten(1)
        outputs: Tensor = self.layers(largest)
        return outputs.reshape(-1, *self.outputs)
