"""The envelope of stand-ins for queries of several inputs, of integers, or of lengths that vary.

Each input is judged by itself, without its padding. A query is unlike the training inputs if one of
its inputs is, or if it is longer than all of those. Numbers are judged as in `models.envelope`;
where an axis is dynamic, all values have one mean and one deviation. Integers of a narrow range may
be ids, whose size says nothing. Of these

    range     no id is below the least or above the largest of the training inputs; of columns of
              features, which are few and of fixed shape, that of the id's column
    surprise  the mean of -ln p, where p is how often the training inputs hold an id (in its
              column): high where ids are rare, low where the same common one comes over and over
    pairs     the same of neighbours along the last axis: an order that the inputs do not have

Both means count PRIOR usual values besides, so that chance does not make few ids unlike, and have
to lie between two limits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import BundleError
from parity_models.models.envelope import (
    Envelope,
    Limits,
    Numbers,
    Reach,
    decode_envelope,
    encode_envelope,
    load_numbers,
    load_reach,
)
from parity_models.models.named_inputs import Named, sizes_in
from parity_models.models.signature import Tensor
from parity_models.models.stored_array import Floats, StoredArray, StoredShape, load, store
from parity_models.models.tensor import tensors_in

Array = NDArray[Any]

PRIOR = 8
"""Usual values that are counted with those of an input."""

FARTHEST = 2**61
"""Ids lie between this and its negative."""


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a mean of -ln p may be, and `usual` is."""

    least: float
    usual: float
    most: float


@dataclass(frozen=True, eq=False)
class Ids:
    """What one input of ids is like where stand-ins were trained.

    They go from `low` to `high`, of which there is one, or one for each column. `table` (m,) and
    `pairs` (p,) hold -ln p of ids and of neighbours, several of which may share a place; p may be
    0. `surprise` and `paired` bound the means.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    table: Floats
    pairs: Floats
    surprise: Bounds
    paired: Bounds

    def like(self, row: Array) -> bool:
        """Are the ids of an input, without padding, like those of the training inputs?"""
        if not self._within(row):
            return False
        single, paired = self.measure(row)
        return (
            self.surprise.least <= single <= self.surprise.most
            and self.paired.least <= paired <= self.paired.most
        )

    def measure(self, row: Array) -> tuple[float, float]:
        """The mean surprise of the ids of an input, and that of their neighbours; all in range."""
        ids = self.places(row)
        single = _mean(self.table[ids % len(self.table)], self.surprise.usual)
        if not len(self.pairs):
            return single, self.paired.usual
        places = self.paired_places(ids) % len(self.pairs)
        return single, _mean(self.pairs[places], self.paired.usual)

    def places(self, rows: Array) -> NDArray[np.int64]:
        """The ids (..., *shape) counted from 0, those of a column behind those of the columns
        before it: (..., *shape), of columns (..., columns)."""
        ids = rows.astype(np.int64)
        if len(self.low) == 1:
            ids -= self.low[0]
            return ids
        return ids.reshape(-1, len(self.low)) + self._begins

    def paired_places(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """A number for each two neighbours of such `places` (..., length): (..., length - 1)."""
        paired = places[..., :-1] * (self.high[0] - self.low[0] + 1)
        paired += places[..., 1:]
        return paired

    def _within(self, row: Array) -> bool:
        if len(self.low) == 1:
            return bool(row.min() >= self.low[0] and row.max() <= self.high[0])
        ids, (low, high) = row.reshape(-1), self._ranges
        return bool(((ids >= low) & (ids <= high)).all())

    @cached_property
    def _ranges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.array(self.low, np.int64), np.array(self.high, np.int64)

    @cached_property
    def _begins(self) -> NDArray[np.int64]:
        low, high = self._ranges
        sizes = high - low + 1
        begins: NDArray[np.int64] = sizes.cumsum() - sizes - low
        return begins


def _mean(values: Floats, usual: float) -> float:
    return (float(values.sum()) + PRIOR * usual) / (values.size + PRIOR)


@dataclass(frozen=True, eq=False)
class NamedEnvelope:
    """What inputs and outputs of a deployed model are like where its stand-ins were trained.

    `parts` say it of each of the `inputs`, in their order; `longest` is how large each dynamic axis
    was at most. `false_alarms` is the share of `held_out` honest queries that are called unlike.
    """

    inputs: tuple[Tensor, ...]
    parts: tuple[Numbers | Ids, ...]
    longest: dict[str, int]
    outputs: Reach
    false_alarms: float
    held_out: int

    def unlike(self, rows: Array) -> NDArray[np.bool_]:
        """For each of `rows` (n, ...), of one kind: is it unlike the training inputs?

        What is not finite is. Takes some 20 µs for each input of a row.
        """
        tensors = zip(self.inputs, tensors_in(rows), strict=True)
        return self.unlike_in({each.name: array for each, array in tensors})

    @np.errstate(over="ignore", invalid="ignore")
    def unlike_in(self, arrays: Named) -> NDArray[np.bool_]:
        """The same of arrays (n, ...) by the name of their input."""
        sizes = sizes_in(arrays, self.inputs)
        rows = len(next(iter(arrays.values())))
        unlike = np.zeros(rows, np.bool_)
        for axis, found in sizes.items():
            unlike |= found > self.longest[axis]
        for tensor, part in zip(self.inputs, self.parts, strict=True):
            for i, content in enumerate(contents(tensor, arrays[tensor.name], sizes)):
                unlike[i] = unlike[i] or not part.like(content)
        return unlike

    def impossible(self, outputs: Array) -> NDArray[np.bool_]:
        """For each of `outputs` (n, *output shape): can the deployed model not give such a one?"""
        return self.outputs.impossible(outputs)


def contents(
    tensor: Tensor, array: Array, sizes: Mapping[str, NDArray[np.int64]]
) -> Iterator[Array]:
    """Each row of an input's `array` (n, ...) without padding; `sizes` are those of its axes."""
    if not tensor.axes:
        yield from (array[i, ...] for i in range(len(array)))
        return
    kept = [slice(None, None)] * (array.ndim - 1)
    for i in range(len(array)):
        for axis, at in tensor.axes.items():
            kept[at] = slice(int(sizes[axis][i]))
        yield array[i][tuple(kept)]


AnyEnvelope = Envelope | NamedEnvelope


def numbers_in(envelope: AnyEnvelope | None, name: str) -> Numbers | None:
    """What is known of the floating point input called `name`; None if nothing is."""
    if envelope is None or isinstance(envelope, Envelope):
        return None if envelope is None else envelope.numbers
    for tensor, part in zip(envelope.inputs, envelope.parts, strict=True):
        if tensor.name == name and tensor.dtype.kind == "f" and isinstance(part, Numbers):
            return part
    return None


# In a bundle

_Id = Annotated[int, msgspec.Meta(ge=-FARTHEST, le=FARTHEST)]
_Range = Annotated[tuple[_Id, ...], msgspec.Meta(min_length=1, max_length=2**16)]


class _Numbers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="numbers"):
    center: StoredArray
    spread: StoredArray
    components: StoredArray
    limits: Limits


class _Ids(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ids"):
    low: _Range
    high: _Range
    table: StoredArray
    pairs: StoredArray
    surprise: Bounds
    paired: Bounds


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inputs: tuple[Tensor, ...]
    parts: tuple[_Numbers | _Ids, ...]
    longest: dict[str, int]
    output_shape: StoredShape
    low: StoredArray
    high: StoredArray
    false_alarms: Annotated[float, msgspec.Meta(ge=0, le=1)]
    held_out: Annotated[int, msgspec.Meta(ge=0)]


def encode_any(envelope: AnyEnvelope) -> bytes:
    """The content of an envelope's file: MessagePack."""
    if isinstance(envelope, Envelope):
        return encode_envelope(envelope)
    outputs = envelope.outputs
    return msgspec.msgpack.encode(
        _File(
            envelope.inputs,
            tuple(_stored(part) for part in envelope.parts),
            envelope.longest,
            outputs.shape,
            store(outputs.low),
            store(outputs.high),
            envelope.false_alarms,
            envelope.held_out,
        )
    )


def _stored(part: Numbers | Ids) -> _Numbers | _Ids:
    if isinstance(part, Numbers):
        center, spread = store(part.center), store(part.spread)
        return _Numbers(center, spread, store(part.components), part.limits)
    table, pairs = store(part.table), store(part.pairs)
    return _Ids(part.low, part.high, table, pairs, part.surprise, part.paired)


def decode_any(content: bytes) -> AnyEnvelope:
    """The envelope in a file's `content`; BundleError says what is wrong with it."""
    try:
        named = "inputs" in msgspec.msgpack.decode(content, type=dict[str, msgspec.Raw])
        file = msgspec.msgpack.decode(content, type=_File) if named else None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"is damaged or not an envelope: {error}") from error
    if file is None:
        return decode_envelope(content)
    if len(file.parts) != len(file.inputs):
        raise BundleError(f"describes {len(file.parts)} inputs of {len(file.inputs)}")
    if set(file.longest) != {axis for tensor in file.inputs for axis in tensor.axes}:
        raise BundleError(f"bounds the axes {sorted(file.longest)}, which are not its inputs'")
    return NamedEnvelope(
        file.inputs,
        tuple(map(_loaded, file.inputs, file.parts)),
        file.longest,
        load_reach(file.output_shape, file.low, file.high),
        file.false_alarms,
        file.held_out,
    )


def _loaded(tensor: Tensor, part: _Numbers | _Ids) -> Numbers | Ids:
    if isinstance(part, _Numbers):
        return load_numbers(tensor.shape, part.center, part.spread, part.components, part.limits)
    ids = Ids(
        part.low,
        part.high,
        load("table", part.table),
        load("pairs", part.pairs),
        part.surprise,
        part.paired,
    )
    columns = len(ids.low)
    fixed = None if tensor.fixed is None else prod(tensor.fixed.shape)
    if tensor.dtype.kind == "f" or len(ids.high) != columns or columns not in (1, fixed):
        raise BundleError(f"has ranges for {columns} columns of {tensor}")
    if any(low > high for low, high in zip(ids.low, ids.high, strict=True)):
        raise BundleError(f"has a range that is empty for {tensor}")
    if ids.table.ndim != 1 or not len(ids.table) or ids.pairs.ndim != 1:
        raise BundleError(f"has no table of ids for {tensor}")
    if len(ids.pairs) and (columns > 1 or not tensor.shape):
        raise BundleError(f"has pairs of ids for {tensor}, which has no neighbours")
    return ids
