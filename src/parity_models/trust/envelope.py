"""The envelope of stand-ins: the range of their training queries, and of the model's outputs.

Where a code's slots are not isolated, a query unlike all that a parity model has seen spoils the
reconstructions of the queries that it is encoded with. Such queries are not encoded, and outputs
that the deployed model would not give are dropped.

Each input is judged alone, without its padding. A query is unlike the training queries if one of
its inputs is, or if it is longer than all of them. An input of numbers x becomes z, the
deviations of its values from their means; where an axis is dynamic, all values have one mean and
one deviation. Four statistics of z are each compared with a limit that few training inputs exceed:

    energy     mean of z²: how far from the mean input
    tails      mean of z⁴: a few values that are far away, even a single one
    roughness  mean of z_i (z_i - z_i+1): neighbours, of pixels or samples, that differ
    distance   the energy that principal components of the inputs leave: values that are each in
               range but never come together (the quadratic form of probabilistic principal
               component analysis: Tipping, Bishop, 1999; it joins the T² and Q statistics of
               Jackson, Mudholkar, Technometrics 1979)

Integers of a narrow range may be ids, whose size says nothing. They have to be in the range of the
training inputs or, in features (few, of fixed shape), of their column.

Of texts, only the length is judged: what a text says that no training text said lowers a stand-in's
confidence, which its gate measures, and no text changes another query's answer.
"""

import contextlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from math import ceil, prod
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import BundleError
from parity_models.tensors.queries import sizes_in
from parity_models.tensors.signature import DATATYPES, Array, Batch, Tensor
from parity_models.tensors.texts import BYTES, read_texts, write_texts

Floats = NDArray[np.float32]

ENVELOPE = "envelope.msgpack"
"""The file of an envelope in a bundle."""

MAX_PROJECTION = 9000
"""The most weights of the projection: beyond about 9,200 OpenBLAS would start threads, which a
server's frontend must not have next to its workers."""

DOT = 8192
"""The longest vectors whose products OpenBLAS computes on one thread."""

FARTHEST = 2**61
"""Ids lie between this and its negative."""

Length = Annotated[int, msgspec.Meta(ge=0, le=2**28)]
_Shape = Annotated[tuple[Length, ...], msgspec.Meta(max_length=32)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Id = Annotated[int, msgspec.Meta(ge=-FARTHEST, le=FARTHEST)]
_Range = Annotated[tuple[_Id, ...], msgspec.Meta(min_length=1, max_length=2**16)]


Statistics = tuple[float, float, float, float]
"""Energy, tails, roughness and distance of an input of numbers (see this module)."""


class Numbers(
    msgspec.Struct, frozen=True, eq=False, dict=True, forbid_unknown_fields=True, tag="numbers"
):
    """One input of numbers, as stand-ins were trained on it.

    `center` and `spread` are mean and deviation of inputs, and can be broadcast to their shape;
    they are single values if an axis is dynamic. `components` (m, values) are the weighted
    principal components of the deviations, m may be 0; `limits` bound the statistics. All arrays
    are float32.
    """

    center: Floats
    spread: Floats
    components: Floats
    limits: Statistics = (0.0, 0.0, 0.0, 0.0)

    def like(self, row: Array) -> bool:
        """Return whether an input (*shape), of any number type, is like the training inputs.

        An input with values that are not finite is not. NumPy may warn of overflow.
        """
        return all(map(operator.le, self.measure(row), self.limits))  # NaN is below no limit

    def measure(self, row: Array) -> Statistics:
        """Return the statistics of an input (*shape).

        Products of vectors take less time than reductions of a small table, so one row at a time.
        """
        scale, shift = self._scaling
        deviations = row.astype(np.float32, copy=False) * scale
        deviations -= shift
        z = deviations.reshape(-1)
        values = len(z)
        square = z * z
        dot: Any = np.ndarray.dot if values <= DOT else partial(np.einsum, "i,i->")
        energy = float(dot(z, z))
        tails = float(dot(square, square))
        roughness = energy - float(dot(z[1:], z[:-1]))
        distance = energy
        if len(self.components):
            along = self.components.dot(z)
            distance -= float(along.dot(along))
        return energy / values, tails / values, roughness / values, distance / values

    def fits(self, tensor: Tensor) -> bool:
        """Return whether this may describe an input `tensor`: shapes fit, and all is finite."""
        shape = () if tensor.fixed is None else tensor.fixed.shape
        found = self.components.shape
        return (
            len(found) == 2
            and (found[0] == 0 if tensor.axes else found[1] == prod(shape))
            and _fits(self.components, found)
            and _fits(self.center, shape)
            and _fits(self.spread, shape)
            and bool((self.spread > 0).all())
        )

    @cached_property
    def _scaling(self) -> tuple[Floats, Floats]:
        one = np.float32(1)
        return one / self.spread, self.center / self.spread


class Ids(msgspec.Struct, frozen=True, eq=False, dict=True, tag="ids"):
    """One input of ids, as stand-ins were trained on it.

    They go from `low` to `high`: one number each, or one for each column.
    """

    low: _Range
    high: _Range

    def like(self, row: Array) -> bool:
        """Return whether the ids of an input, without padding, are like the training inputs'."""
        low, high = self._ranges
        ids = row.reshape(-1)
        return bool(((ids >= low) & (ids <= high)).all())

    def fits(self, tensor: Tensor) -> bool:
        """Return whether this may describe an input `tensor`: ranges are of it or its columns."""
        columns = len(self.low)
        fixed = None if tensor.fixed is None else prod(tensor.fixed.shape)
        ascending = len(self.high) == columns and all(map(operator.le, self.low, self.high))
        return ascending and tensor.dtype.kind not in "fO" and columns in (1, fixed)

    @cached_property
    def _ranges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.array(self.low, np.int64), np.array(self.high, np.int64)


class Texts(msgspec.Struct, frozen=True, eq=False, tag="texts"):
    """One input of texts, as stand-ins were trained on it: up to `longest` characters each."""

    longest: _Count

    def like(self, row: Array) -> bool:
        """Return whether no text of an input is much longer than the training inputs'."""
        return max(map(len, row.ravel().tolist()), default=0) <= self.longest

    def fits(self, tensor: Tensor) -> bool:
        """Return whether this may describe an input `tensor`."""
        return tensor.is_text


Part = Numbers | Ids | Texts
"""One input, as stand-ins were trained on it."""


class Envelope(msgspec.Struct, frozen=True, eq=False, forbid_unknown_fields=True):
    """A deployed model's inputs and outputs, as its stand-ins were trained on them.

    `parts` describe the `inputs`, in their order; `longest` is the largest size along each dynamic
    axis. Outputs of `output_shape` lie between `low` and `high`, which can be broadcast to it.
    `false_alarms` is the share of `held_out` honest queries that are rejected.
    """

    inputs: tuple[Tensor, ...]
    parts: tuple[Part, ...]
    longest: dict[str, int]
    output_shape: _Shape
    low: Floats
    high: Floats
    false_alarms: _Share
    held_out: _Count

    @np.errstate(over="ignore", invalid="ignore")
    def unlike(self, queries: Batch) -> NDArray[np.bool_]:
        """Return for each of n queries whether it is unlike the training queries, or not finite:
        (n,). It takes some 5 to 10 µs for each input of a row."""
        sizes = sizes_in(queries, self.inputs) if self.longest else {}
        count = len(next(iter(queries.values())))
        unlike = np.zeros(count, np.bool_)
        for axis, found in sizes.items():
            unlike |= found > self.longest[axis]
        for tensor, part in zip(self.inputs, self.parts, strict=True):
            array = queries[tensor.name]
            cut = contents(tensor, array, sizes) if sizes else None
            for row in range(count):
                if not part.like(array[row, ...] if cut is None else cut[row]):
                    unlike[row] = True
        return unlike

    def impossible(self, outputs: Array) -> NDArray[np.bool_]:
        """Return for each of `outputs` (n, *output_shape) whether a value is not finite, or far
        outside the deployed model's outputs for the training inputs: (n,)."""
        possible = (outputs >= self.low) & (outputs <= self.high)
        return np.logical_not(possible.reshape(len(outputs), -1).all(axis=1))


def contents(tensor: Tensor, array: Array, sizes: Mapping[str, NDArray[np.int64]]) -> list[Array]:
    """Return the rows of an input's `array` (n, ...) without padding; `sizes` are its axes'."""
    rows = [array[i, ...] for i in range(len(array))]
    for axis, at in tensor.axes.items():
        before = (slice(None),) * at
        rows = [row[(*before, slice(size))] for row, size in zip(rows, sizes[axis], strict=True)]
    return rows


# Fitting to the queries that stand-ins are trained on

FALSE_ALARMS = 0.005
"""The largest share of honest inputs that may be called unlike."""

LONGER = 2
"""Texts may be this many times longer than the longest one that stand-ins learned from."""

MARGIN = 1.1
"""Limits are this many times farther from the median than honest inputs go."""

FITTED = 2**23
"""The most values from which means, deviations and components are computed."""

MEASURED = 20_000
"""The most inputs from which limits are set, and on which false alarms are counted."""

MAX_SEPARATE = 4096
"""Larger inputs are described by channel, if they have channels, and larger outputs as a whole."""

FEWEST_COMPONENTS, MOST_COMPONENTS, FOLDS = 4, 32, 4

OUTLYING = 0.005
"""The share of values, at either end, that may be outliers."""

COMMON, STRAY = 0.975, 10.0
"""Limits are set without inputs that are STRAY times farther from the median than the share COMMON
of inputs."""

FLOOR = 0.1
"""The least deviation, as a share of the typical one: values that vary less, as in the corners of
images, count as if they varied this much."""

NEGLIGIBLE = 1e-6

WIDEST, LARGEST = 2**20, 2**53
"""Integers that span a wider range, or are larger, are numbers, not ids."""

MOST_COLUMNS = 256
"""A row of more integers than this is a sequence: all its columns count as one."""


def fit_envelope(
    inputs: Sequence[Tensor],
    queries: Batch,
    held_out: Batch,
    outputs: Array,
    *,
    mirrored: bool = False,
) -> Envelope:
    """Fit the envelope of training queries, an array (n, ...) for each of the model's inputs.

    False alarms are counted among the queries `held_out`. `outputs` are the deployed model's
    (m, *output_shape). If `mirrored`, queries turned left to right count as well.
    """
    sizes = sizes_in(queries, inputs)
    share = FALSE_ALARMS / len(inputs)
    some = {name: spaced(each, MEASURED) for name, each in held_out.items()}
    envelope = Envelope(
        tuple(inputs),
        tuple(_fit(each, queries[each.name], sizes, share, mirrored) for each in inputs),
        {axis: int(found.max()) for axis, found in sizes.items()},
        outputs.shape[1:],
        *reach(outputs),
        0.0,
        len(next(iter(some.values()))),
    )
    return msgspec.structs.replace(envelope, false_alarms=float(envelope.unlike(some).mean()))


def _fit(
    tensor: Tensor,
    array: Array,
    sizes: Mapping[str, NDArray[np.int64]],
    share: float,
    mirrored: bool,
) -> Part:
    """Fit one input, an `array` (n, ...), with limits that call at most a `share` of honest inputs
    unlike."""
    if tensor.is_text:
        return Texts(LONGER * max(map(len, array.ravel().tolist()), default=0))
    ids = _are_ids(array)
    if not ids:
        array = array.astype(np.float32, copy=False)
    if not (ids or tensor.axes):
        return _fit_numbers(array, share, mirrored)
    few = FITTED // max(1, prod(array.shape[1:]))
    array, sizes = spaced(array, few), {axis: spaced(each, few) for axis, each in sizes.items()}
    rows = contents(tensor, array, sizes)
    values = np.concatenate([row.reshape(-1) for row in rows])
    if ids:
        columns = 1 if tensor.axes or rows[0].size > MOST_COLUMNS else rows[0].size
        low, high = (each(values.reshape(-1, columns), axis=0) for each in (np.min, np.max))
        return Ids(tuple(map(int, low)), tuple(map(int, high)))
    # If an axis is dynamic, all values are of one kind.
    center, spread = map(np.asarray, _spread(values, (), by_channel=False))
    blank = Numbers(center, spread, np.empty((0, 1), np.float32))
    return msgspec.structs.replace(blank, limits=_limits(_measure(blank, rows), share))


def _fit_numbers(inputs: Array, share: float, mirrored: bool) -> Numbers:
    """Fit float32 inputs (n, *shape) of fixed shape."""
    shape, values = inputs.shape[1:], prod(inputs.shape[1:])
    some = np.random.default_rng(0).permutation(spaced(inputs, FITTED // values))
    if mirrored:
        some = np.stack([some, some[..., ::-1]], axis=1).reshape(-1, *shape)
    channels = channel_axis(shape)
    alike = () if channels is None else tuple(set(range(1, some.ndim)) - {1 + channels})
    by_channel = channels is not None and values > MAX_SEPARATE
    center, spread = _spread(some, alike, by_channel=by_channel)
    blank = Numbers(center, spread, np.empty((0, values), np.float32))
    components = _components(blank, some)
    if not len(components):
        measured = _measure(blank, spaced(inputs, MEASURED))
    else:  # each fold by components that are fitted to the others
        folds = np.array_split(some, FOLDS)
        parts = []
        for i, fold in enumerate(folds):
            others = np.concatenate(folds[:i] + folds[i + 1 :])
            if len(others):
                known = msgspec.structs.replace(blank, components=_components(blank, others))
                parts.append(_measure(known, fold))
        measured = np.concatenate(parts)
    return msgspec.structs.replace(blank, components=components, limits=_limits(measured, share))


def channel_axis(query_shape: tuple[int, ...]) -> int | None:
    """Return the axis of a query along which values differ in kind: that of channels in images, the
    shorter one in sequences, or the first of two equal ones. None: each value is of its own kind.
    """
    if len(query_shape) < 2:
        return None
    return int(len(query_shape) == 2 and query_shape[1] < query_shape[0])


def spaced(rows: Array, most: int) -> Array:
    """Return at most `most` of the rows, or 2 if `most` is less, evenly spaced."""
    return rows[:: ceil(len(rows) / max(most, 2))]


def _spread(rows: Array, alike: tuple[int, ...], *, by_channel: bool) -> tuple[Array, Array]:
    """Return mean and deviation, without outliers, of each value of `rows` (n, ...), or by channel:
    the axes `alike` hold values of one kind."""
    axes = (0, *alike) if by_channel else (0,)
    low, high = np.quantile(rows, (OUTLYING, 1 - OUTLYING), axis=axes, keepdims=True)
    # Among values that are nearly always the same, as flags are, rare ones are not outliers.
    reach = np.where(high > low, high - low, np.inf)
    kept = np.clip(rows, low - reach, high + reach)
    center = kept.mean(axis=axes, keepdims=True, dtype=np.float64)
    spread = kept.std(axis=axes, keepdims=True, dtype=np.float64)
    if alike:
        typical = np.sqrt(np.square(spread).mean(axis=alike, keepdims=True))
        spread = np.maximum(spread, FLOOR * typical)
    constant = spread <= NEGLIGIBLE * np.abs(center)
    telling = spread[~constant]
    floor = FLOOR * np.median(telling) if telling.size else FLOOR
    spread = np.where(constant, np.maximum(floor, FLOOR * np.abs(center)), spread)
    return center[0].astype(np.float32), spread[0].astype(np.float32)


def _measure(numbers: Numbers, rows: Iterable[Array]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array([numbers.measure(row) for row in rows])


def _limits(measured: Array, false_alarms: float) -> Statistics:
    # Stand-ins should not be asked about inputs that lie far beyond all others.
    farness = np.sqrt(np.sqrt(measured[:, 1]))
    usual, far = np.quantile(farness, (0.5, COMMON))
    measured = measured[farness <= usual + STRAY * (far - usual) + NEGLIGIBLE]
    share = false_alarms / measured.shape[1]
    reached = np.quantile(measured, 1 - share, axis=0, method="higher")
    middle = np.median(measured, axis=0)
    energy, tails, roughness, distance = middle + MARGIN * (reached - middle) + NEGLIGIBLE
    return float(energy), float(tails), float(roughness), float(distance)


def _components(numbers: Numbers, rows: Array) -> Array:
    """Return weighted principal components (m, values) of the deviations of `rows` (n, *shape).

    An input's energy, less the squares of its projections onto them, is its distance from `rows`.
    """
    values = prod(rows.shape[1:])
    number = min(MAX_PROJECTION // values, values // 2, len(rows) // 4, MOST_COMPONENTS)
    if number < FEWEST_COMPONENTS:
        return np.empty((0, values), np.float32)
    z = ((rows - numbers.center) / numbers.spread).reshape(len(rows), values)
    z = np.clip(z, -10, 10)
    variances, directions = np.linalg.eigh(z.T.astype(np.float64) @ z / len(z))
    rest = max(variances[:-number].mean(), NEGLIGIBLE * variances.mean())
    along = np.maximum(variances[-number:], rest)
    weighted = directions[:, -number:] * np.sqrt(1 - rest / along) if rest > 0 else directions
    return np.ascontiguousarray(weighted.T, np.float32)


def reach(outputs: Array) -> tuple[Array, Array]:
    """Return the range of F's `outputs` (n, *shape), widened on either side by its own width."""
    one = prod(outputs.shape[1:]) > MAX_SEPARATE
    outputs = outputs[np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)]
    low = outputs.min(axis=None if one else 0)
    high = outputs.max(axis=None if one else 0)
    span = (high - low).astype(np.float64)
    span = np.maximum(span, 1e-3 * np.abs(outputs).max() + NEGLIGIBLE)
    most = np.finfo(np.float32).max
    return (
        np.asarray(np.clip(low - span, -most, most), np.float32),
        np.asarray(np.clip(high + span, -most, most), np.float32),
    )


def _are_ids(array: Array) -> bool:
    if array.dtype.kind == "f":
        return False
    low, high = int(array.min()), int(array.max())
    return low > -LARGEST and high < LARGEST and high - low < WIDEST


# In a bundle


class StoredArray(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An array of little-endian numbers, or of texts."""

    shape: Annotated[tuple[Length, ...], msgspec.Meta(max_length=33)]
    values: bytes
    datatype: str = "FP32"


def store_array(array: Array) -> StoredArray:
    """Return an array in the form that files hold."""
    name = next(name for name, dtype in DATATYPES.items() if dtype == array.dtype)
    if name == BYTES:
        return StoredArray(array.shape, write_texts(array), name)
    values = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return StoredArray(array.shape, values, name)


def load_array(kind: type[Any], stored: Any) -> Array:
    """Return a stored array. Raises ValueError for one that is unsound."""
    found = msgspec.convert(stored, StoredArray)
    if found.datatype == BYTES:
        return read_texts(found.values, found.shape)
    dtype = DATATYPES.get(found.datatype)
    if dtype is None or prod(found.shape) * dtype.itemsize != len(found.values):
        raise ValueError(f"an array of shape {list(found.shape)} has {len(found.values)} bytes")
    array = np.frombuffer(found.values, dtype.newbyteorder("<")).astype(dtype)
    return array.reshape(found.shape)


# Made here, and not by the threads that open bundles: see bundle.py.
_ENVELOPE = msgspec.msgpack.Decoder(Envelope, dec_hook=load_array)


def encode_envelope(envelope: Envelope) -> bytes:
    """Return the content of an envelope's file: MessagePack."""
    return msgspec.msgpack.encode(envelope, enc_hook=store_array)


def decode_envelope(content: bytes) -> Envelope:
    """Return the envelope in a file's `content`. Raises BundleError if it is damaged."""
    try:
        envelope = _ENVELOPE.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"is damaged or not an envelope: {error}") from error
    axes = {axis for tensor in envelope.inputs for axis in tensor.axes}
    if len(envelope.parts) != len(envelope.inputs) or set(envelope.longest) != axes:
        raise BundleError("is damaged: it does not describe the inputs that it names")
    for tensor, part in zip(envelope.inputs, envelope.parts, strict=True):
        if not part.fits(tensor):
            raise BundleError(f"is damaged: its numbers do not fit the input {tensor}")
    if not all(_fits(each, envelope.output_shape) for each in (envelope.low, envelope.high)):
        raise BundleError("is damaged: its range of outputs does not fit their shape")
    return envelope


def _fits(array: Floats, shape: tuple[int, ...]) -> bool:
    """Return whether `array` is finite float32 that can be broadcast to `shape`."""
    with contextlib.suppress(ValueError):
        fits = np.broadcast_shapes(array.shape, shape) == shape
        return fits and array.dtype == np.float32 and bool(np.isfinite(array).all())
    return False
