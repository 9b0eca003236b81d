"""The envelope of stand-ins: which queries are like those they learned from, and which outputs are
possible.

Where a code's slots are not isolated, a query that is unlike all that a parity model has seen
spoils the reconstructions of the queries that it is encoded with. Such queries are not encoded, and
outputs that the deployed model would not give are dropped.

Each input is judged by itself, without its padding. A query is unlike the training queries if one
of its inputs is, or if it is longer than all of them. An input of numbers x becomes z, the
deviations of its values from their means; where an axis is dynamic, all values have one mean and
one deviation. Four statistics of z are each compared with a limit that few training inputs exceed:

    energy     mean of z²: how far from the mean input
    tails      mean of z⁴: a few values that are far away, were there only one of them
    roughness  mean of z_i (z_i - z_i+1): neighbours, of pixels or samples, that differ
    distance   the energy that principal components of the inputs leave: values that are each in
               range but never come together (the quadratic form of probabilistic principal
               component analysis: Tipping, Bishop, 1999; it joins the T² and Q statistics of
               Jackson, Mudholkar, Technometrics 1979)

Integers of a narrow range may be ids, whose size says nothing. Three statistics judge these:

    range     the least and the largest id of the training inputs; of columns of features, which
              are few and of fixed shape, those of the id's column
    surprise  the mean of -ln p, where p is the share of an id in the training inputs (in its
              column): high where ids are rare, low where one common id repeats
    pairs     the same of neighbours along the last axis: an order that the inputs do not have

Both means count PRIOR usual values as well, so that chance does not make few ids unlike, and have
to lie between two limits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import BundleError
from parity_models.models.queries import Batch, rows_in, sizes_in
from parity_models.models.signature import Tensor

Array = NDArray[Any]
Floats = NDArray[np.float32]

ENVELOPE = "envelope.msgpack"
"""The file of an envelope in a bundle."""

MAX_PROJECTION = 9000
"""Weights of the projection at most: beyond about 9,200 OpenBLAS would start threads, which a
server's frontend must not have beside its workers."""

DOT = 8192
"""The longest vectors whose products OpenBLAS computes on one thread."""

PRIOR = 8
"""Usual values that are counted with those of an input."""

FARTHEST = 2**61
"""Ids lie between this and its negative."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The largest statistics (see this module) of an input of numbers like the training inputs."""

    energy: float
    tails: float
    roughness: float
    distance: float


@dataclass(frozen=True, eq=False)
class Numbers:
    """One input of numbers where stand-ins were trained.

    `center` and `spread` (both of `shape`, or broadcast to it; of one value where an axis of
    `shape` is dynamic, and so has a name) are mean and deviation of inputs; `components` (m,
    values) the weighted principal components of their deviations, m may be 0; `limits` bound the
    statistics. All arrays are float32.
    """

    shape: tuple[int | str, ...]
    center: Floats
    spread: Floats
    components: Floats
    limits: Limits

    def like(self, row: Array) -> bool:
        """Return whether an input (*shape), of any number type, is like the training inputs.

        One that is not finite is not. NumPy may warn of overflow.
        """
        energy, tails, roughness, distance = self.measure(row)
        limits = self.limits
        # NaN is below no limit.
        return (
            energy <= limits.energy
            and tails <= limits.tails
            and roughness <= limits.roughness
            and distance <= limits.distance
        )

    def measure(self, row: Array) -> tuple[float, float, float, float]:
        """Return energy, tails, roughness and distance of an input (*shape).

        One row at a time: products of vectors take less time than reductions of a small table.
        """
        z = row.reshape(-1).astype(np.float32, copy=False) * self._scale
        z -= self._shift
        values = len(z)
        square = z * z
        dot = np.ndarray.dot if values <= DOT else _long_dot
        energy = float(dot(z, z))
        tails = float(dot(square, square))
        roughness = energy - float(dot(z[1:], z[:-1]))
        distance = energy
        if len(self.components):
            along = self.components.dot(z)
            distance -= float(along.dot(along))
        return energy / values, tails / values, roughness / values, distance / values

    @cached_property
    def _scale(self) -> Floats:
        return self._flat(1 / self.spread)

    @cached_property
    def _shift(self) -> Floats:
        return self._flat(self.center / self.spread)

    def _flat(self, values: Array) -> Floats:
        fixed = tuple(size for size in self.shape if isinstance(size, int))
        shape = fixed if len(fixed) == len(self.shape) else (1,)
        return np.ascontiguousarray(np.broadcast_to(values, shape), np.float32).reshape(-1)


def _long_dot(a: Floats, b: Floats) -> Any:
    return np.einsum("i,i->", a, b)


class Bounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The range, and the usual value, of a mean of -ln p."""

    least: float
    usual: float
    most: float


@dataclass(frozen=True, eq=False)
class Ids:
    """One input of ids where stand-ins were trained.

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
        """Return whether the ids of an input, without padding, are like the training inputs'."""
        if not self._within(row):
            return False
        single, paired = self.measure(row)
        return (
            self.surprise.least <= single <= self.surprise.most
            and self.paired.least <= paired <= self.paired.most
        )

    def measure(self, row: Array) -> tuple[float, float]:
        """Return the mean surprise of an input's ids, all in range, and that of neighbours."""
        ids = self.places(row)
        single = _mean(self.table[ids % len(self.table)], self.surprise.usual)
        if not len(self.pairs):
            return single, self.paired.usual
        places = self.paired_places(ids) % len(self.pairs)
        return single, _mean(self.pairs[places], self.paired.usual)

    def places(self, rows: Array) -> NDArray[np.int64]:
        """Return the ids (..., *shape) counted from 0, those of a column behind those of the
        columns before it: (..., *shape), of columns (..., columns)."""
        ids = rows.astype(np.int64)
        if len(self.low) == 1:
            ids -= self.low[0]
            return ids
        return ids.reshape(-1, len(self.low)) + self._begins

    def paired_places(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a number for each two neighbours of such `places` (..., length): (..., length -
        1)."""
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
class Reach:
    """The range of outputs: `low` and `high`, of `shape` or broadcast to it."""

    shape: tuple[int, ...]
    low: Floats
    high: Floats


@dataclass(frozen=True, eq=False)
class Envelope:
    """Inputs and outputs of a deployed model where its stand-ins were trained.

    `parts` describe the `inputs`, in their order; `longest` is the largest size along each dynamic
    axis. `false_alarms` is the share of `held_out` honest queries that are called unlike.
    """

    inputs: tuple[Tensor, ...]
    parts: tuple[Numbers | Ids, ...]
    longest: dict[str, int]
    outputs: Reach
    false_alarms: float
    held_out: int

    @np.errstate(over="ignore", invalid="ignore")
    def unlike(self, queries: Batch) -> NDArray[np.bool_]:
        """Return for each of n queries whether it is unlike the training queries: (n,).

        One that is not finite is. Takes some 10 to 20 µs for each input of a row.
        """
        sizes = sizes_in(queries, self.inputs)
        unlike = np.zeros(rows_in(queries), np.bool_)
        for axis, found in sizes.items():
            unlike |= found > self.longest[axis]
        for tensor, part in zip(self.inputs, self.parts, strict=True):
            for i, content in enumerate(contents(tensor, queries[tensor.name], sizes)):
                unlike[i] = unlike[i] or not part.like(content)
        return unlike

    def impossible(self, outputs: Array) -> NDArray[np.bool_]:
        """Return for each of `outputs` (n, *output shape) whether the deployed model cannot give
        it: (n,).

        That is so if a value is not finite, or far outside the outputs for the training inputs.
        """
        possible = (outputs >= self.outputs.low) & (outputs <= self.outputs.high)
        return np.logical_not(possible.reshape(len(outputs), -1).all(axis=1))


def contents(
    tensor: Tensor, array: Array, sizes: Mapping[str, NDArray[np.int64]]
) -> Iterator[Array]:
    """Yield each row of an input's `array` (n, ...) without padding; `sizes` are its axes'."""
    if not tensor.axes:
        yield from (array[i, ...] for i in range(len(array)))
        return
    kept = [slice(None, None)] * (array.ndim - 1)
    for i in range(len(array)):
        for axis, at in tensor.axes.items():
            kept[at] = slice(int(sizes[axis][i]))
        yield array[i][tuple(kept)]


# In a bundle

Length = Annotated[int, msgspec.Meta(ge=0, le=2**28)]
_Shape = Annotated[tuple[Length, ...], msgspec.Meta(max_length=32)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Id = Annotated[int, msgspec.Meta(ge=-FARTHEST, le=FARTHEST)]
_Range = Annotated[tuple[_Id, ...], msgspec.Meta(min_length=1, max_length=2**16)]


class _Array(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An array of little-endian float32."""

    shape: _Shape
    values: bytes


class _Numbers(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="numbers"):
    center: _Array
    spread: _Array
    components: _Array
    limits: Limits


class _Ids(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ids"):
    low: _Range
    high: _Range
    table: _Array
    pairs: _Array
    surprise: Bounds
    paired: Bounds


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    inputs: tuple[Tensor, ...]
    parts: tuple[_Numbers | _Ids, ...]
    longest: dict[str, int]
    output_shape: _Shape
    low: _Array
    high: _Array
    false_alarms: _Share
    held_out: _Count


class _OneInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file of an envelope of one float32 input, as earlier versions wrote it."""

    shape: _Shape
    output_shape: _Shape
    center: _Array
    spread: _Array
    components: _Array
    limits: Limits
    low: _Array
    high: _Array
    false_alarms: _Share
    held_out: _Count


# Made here, and not by the threads that open bundles: see manifest.py.
_FILE = msgspec.msgpack.Decoder(_File)
_ONE_INPUT = msgspec.msgpack.Decoder(_OneInput)
_FIELDS = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])


def encode_envelope(envelope: Envelope) -> bytes:
    """Return the content of an envelope's file: MessagePack."""
    outputs = envelope.outputs
    return msgspec.msgpack.encode(
        _File(
            envelope.inputs,
            tuple(map(_stored, envelope.parts)),
            envelope.longest,
            outputs.shape,
            _store(outputs.low),
            _store(outputs.high),
            envelope.false_alarms,
            envelope.held_out,
        )
    )


def decode_envelope(content: bytes, inputs: Sequence[Tensor]) -> Envelope:
    """Return the envelope in a file's `content`, for a deployed model with these inputs.

    Raises BundleError for a file that is damaged, or an envelope of other inputs.
    """
    try:
        if "inputs" in _FIELDS.decode(content):
            file = _FILE.decode(content)
        else:
            file = _of_one_input(_ONE_INPUT.decode(content), inputs)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"is damaged or not an envelope: {error}") from error
    if len(file.parts) != len(file.inputs):
        raise BundleError(f"describes {len(file.parts)} inputs of {len(file.inputs)}")
    if set(file.longest) != {axis for tensor in file.inputs for axis in tensor.axes}:
        raise BundleError(f"bounds the axes {sorted(file.longest)}, which are not its inputs'")
    return Envelope(
        file.inputs,
        tuple(map(_loaded, file.inputs, file.parts)),
        file.longest,
        Reach(
            file.output_shape,
            _load("low", file.low, file.output_shape),
            _load("high", file.high, file.output_shape),
        ),
        file.false_alarms,
        file.held_out,
    )


def _of_one_input(file: _OneInput, inputs: Sequence[Tensor]) -> _File:
    if [file.shape] != [each.shape for each in inputs]:
        needed = " and ".join(f"[{', '.join(map(str, each.shape))}]" for each in inputs)
        raise BundleError(
            f"is of inputs of shape {list(file.shape)}, the deployed model's have {needed}"
        )
    numbers = _Numbers(file.center, file.spread, file.components, file.limits)
    rest = (file.output_shape, file.low, file.high, file.false_alarms, file.held_out)
    return _File(tuple(inputs), (numbers,), {}, *rest)


def _stored(part: Numbers | Ids) -> _Numbers | _Ids:
    if isinstance(part, Numbers):
        center, spread = _store(part.center), _store(part.spread)
        return _Numbers(center, spread, _store(part.components), part.limits)
    table, pairs = _store(part.table), _store(part.pairs)
    return _Ids(part.low, part.high, table, pairs, part.surprise, part.paired)


def _loaded(tensor: Tensor, part: _Numbers | _Ids) -> Numbers | Ids:
    if isinstance(part, _Numbers):
        return _loaded_numbers(tensor, part)
    table, pairs = _load("table", part.table), _load("pairs", part.pairs)
    ids = Ids(part.low, part.high, table, pairs, part.surprise, part.paired)
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


def _loaded_numbers(tensor: Tensor, part: _Numbers) -> Numbers:
    fixed = tuple(size for size in tensor.shape if isinstance(size, int))
    fits = () if tensor.axes else fixed
    numbers = Numbers(
        tensor.shape,
        _load("center", part.center, fits),
        _load("spread", part.spread, fits),
        _load("components", part.components),
        part.limits,
    )
    found = numbers.components.shape
    if len(found) != 2 or (found[0] if tensor.axes else found[1] != prod(fixed)):
        raise BundleError(f"has components {list(found)} for inputs of shape {list(tensor.shape)}")
    if not (numbers.spread > 0).all():
        raise BundleError("has a spread that is not positive")
    return numbers


def _store(array: Floats) -> _Array:
    return _Array(array.shape, array.astype("<f4").tobytes())


def _load(name: str, stored: _Array, fits: tuple[int, ...] | None = None) -> Floats:
    """Return a stored array, which can be broadcast to the shape `fits`, if that is given."""
    if prod(stored.shape) * 4 != len(stored.values):
        raise BundleError(f"has {len(stored.values)} bytes of {name} {list(stored.shape)}")
    array = np.frombuffer(stored.values, "<f4").astype(np.float32).reshape(stored.shape)
    if not np.isfinite(array).all():
        raise BundleError(f"has values of {name} that are not finite")
    if fits is not None:
        try:
            fitting = np.broadcast_shapes(stored.shape, fits) == fits
        except ValueError:
            fitting = False
        if not fitting:
            raise BundleError(f"has {name} of shape {list(stored.shape)} for {list(fits)}")
    return array
