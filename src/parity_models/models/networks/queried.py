"""What a network for named inputs is told of the queries that it is to take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.models.networks.encoder import Encoder
from parity_models.models.own_layers import OwnLayers
from parity_models.models.signature import Tensor

Floats = NDArray[np.float32]

LEAST_DEVIATION = 1e-6
"""Numbers that vary less do not vary."""


@dataclass(frozen=True, eq=False)
class QueriedInput:
    """One input of queries, and what the queries show of it.

    They hold values from `low` to `high`. `constant`: always the same. `mask`: 1 where integers of
    another input of that shape are content, 0 where they are padding. `mean`, `deviation` and
    `highest`, of the shape of a row, are there where no axis is dynamic. `table` (values, width)
    are the vectors that the deployed model looks its integers up in; `layers`, or `encoder`, all of
    its layers, where they were found.
    """

    tensor: Tensor
    low: float
    high: float
    constant: bool
    mask: bool
    mean: Floats | None = None
    deviation: Floats | None = None
    highest: Floats | None = None
    table: Floats | None = None
    layers: OwnLayers | None = None
    encoder: Encoder | None = None

    @property
    def whole(self) -> bool:
        """Are its values integers?"""
        return self.tensor.dtype.kind in "iub"

    @property
    def values(self) -> int:
        """How many different values integers from 0 may have."""
        return len(self.table) if self.table is not None else int(self.high) + 1


Queried = tuple[QueriedInput, ...]
"""All inputs, in the deployed model's order."""


def describe(
    arrays: Mapping[str, NDArray[Any]],
    inputs: Sequence[Tensor],
    tables: Mapping[str, Floats] | None = None,
    layers: OwnLayers | None = None,
) -> Queried:
    """What queries `arrays` (n, ...), by input, show of these `inputs`; `tables`, and the `layers`
    of a model with one input, as found."""
    return tuple(_describe(each, arrays, inputs, tables or {}, layers) for each in inputs)


def _describe(
    tensor: Tensor,
    arrays: Mapping[str, NDArray[Any]],
    inputs: Sequence[Tensor],
    tables: Mapping[str, Floats],
    layers: OwnLayers | None,
) -> QueriedInput:
    array = arrays[tensor.name]
    mean = deviation = highest = None
    if not tensor.axes:
        highest = np.asarray(array.max(axis=0), np.float32)
        mean = np.asarray(array.mean(axis=0, dtype=np.float64), np.float32)
        spread = np.asarray(array.std(axis=0, dtype=np.float64), np.float32)
        varies = spread > LEAST_DEVIATION * (1 + np.abs(mean))
        deviation = np.where(varies, spread, 1).astype(np.float32)
    return QueriedInput(
        tensor,
        float(array.min()),
        float(array.max()),
        bool((array == (array.flat[0] if tensor.axes else array[:1])).all()),
        any(_masks(tensor, other, arrays) for other in inputs),
        mean,
        deviation,
        highest,
        tables.get(tensor.name),
        layers,
    )


def _masks(mask: Tensor, other: Tensor, arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Does `mask` say where `other` holds content?"""
    if mask.name == other.name or mask.shape != other.shape or other.dtype.kind not in "iu":
        return False
    values, content = arrays[mask.name], arrays[other.name]
    if content.max() <= 1 or not ((values == 0) | (values == 1)).all() or not values.any():
        return False
    hidden = content[values == 0]
    return bool((hidden == np.asarray(other.padding).astype(content.dtype)).all())
