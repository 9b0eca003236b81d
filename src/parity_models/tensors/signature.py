"""A model's signature: its named inputs and outputs, and the memory layout of a row of them.

A query is one row of every input, and its prediction one row of every output. A dynamic axis has a
name, a bound, and a few sizes that queries are padded to, its buckets: only queries of one bucket
are batched and coded together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Annotated, Any, NamedTuple, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.tensors.texts import BYTES, MAX_TEXT, read_texts, take_texts, write_texts

Array = NDArray[Any]
Named = dict[str, Array]
Batch = Mapping[str, Array]
"""A batch of n queries: an array (n, ...) for each input by name, in the signature's order."""

Sizes = tuple[int, ...]
"""The sizes of a signature's dynamic axes, in the order of their names in it."""

DATATYPES: dict[str, np.dtype[np.generic]] = {
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "BOOL": np.dtype(np.bool_),
    BYTES: np.dtype(object),
}
"""The Open Inference Protocol's tensor data types that models here can have; BYTES are texts."""

MAX_VALUES = 2**28
"""The most values of one row: 1 GiB of FP32."""

MAX_ROW_BYTES = 2**31 - 1
"""The most bytes of one row of all inputs, or of all outputs."""

WORDS = (6, 4)
"""The number of words of texts that are drawn, and of their letters."""

MAX_BUCKETS = 16
MAX_TENSORS = 64

Size = Annotated[int, msgspec.Meta(ge=1, le=MAX_VALUES)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class _Typed(msgspec.Struct, frozen=True):
    """The name and the data type, a key of DATATYPES, of a tensor."""

    name: Name
    datatype: str

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return DATATYPES[self.datatype]

    @property
    def is_text(self) -> bool:
        return self.datatype == BYTES


class TensorSpec(_Typed, frozen=True, forbid_unknown_fields=True):
    """A tensor with its shape, without the batch axis."""

    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=32)]

    def __post_init__(self) -> None:
        _check(self.datatype, self.shape)

    def zeros(self, rows: int) -> Array:
        """Return a batch of `rows` rows of zeros, or of empty texts: (rows, *shape)."""
        return np.full((rows, *self.shape), "" if self.is_text else 0, self.dtype)

    def draw(self, rng: "np.random.Generator", rows: int) -> Array:
        """Return rows (rows, *shape) that suit most models: numbers from 0 to 1, integers of 0 or
        1, texts of a few words."""
        shape = (rows, *self.shape)
        if self.is_text:
            letters = rng.integers(ord("a"), ord("z") + 1, (prod(shape), *WORDS), np.uint8)
            texts = [" ".join(bytes(word).decode() for word in text) for text in letters]
            return np.array(texts, object).reshape(shape)
        if self.dtype.kind == "f":
            return rng.random(shape).astype(self.dtype)
        return rng.integers(0, 2, shape).astype(self.dtype)

    def __str__(self) -> str:
        return f"{self.name!r} {self.datatype} {list(self.shape)}"


class Tensor(_Typed, frozen=True, forbid_unknown_fields=True):
    """A tensor of a model, whose `shape` (of one row) has names where axes are dynamic.

    Shorter rows of an input are filled up with the value `padding`, or with empty texts.
    """

    shape: Annotated[tuple[Size | Name, ...], msgspec.Meta(max_length=32)]
    padding: float = 0.0

    def __post_init__(self) -> None:
        _check(self.datatype, [each for each in self.shape if isinstance(each, int)])
        with np.errstate(all="ignore"):
            held = np.float64(self.padding).astype(self.dtype)
        fits = float(held) == self.padding or self.dtype.kind == "f"
        if not fits or (self.is_text and self.padding):
            raise ValueError(f"{self.datatype} of {self.name!r} cannot hold {self.padding:g}")

    @property
    def fill(self) -> Array:
        """The value, of shape (), that fills up shorter rows."""
        return np.asarray("" if self.is_text else self.padding, self.dtype)

    @property
    def axes(self) -> dict[str, int]:
        """Its dynamic axes, and where in its shape each is."""
        return {each: i for i, each in enumerate(self.shape) if isinstance(each, str)}

    @property
    def fixed(self) -> TensorSpec | None:
        """The tensor with all its sizes; None if it has dynamic axes."""
        return None if self.axes else self.at({})

    def at(self, sizes: Mapping[str, int]) -> TensorSpec:
        """Return the tensor with these sizes of its dynamic axes."""
        shape = tuple(each if isinstance(each, int) else sizes[each] for each in self.shape)
        return TensorSpec(self.name, self.datatype, shape)

    def __str__(self) -> str:
        return f"{self.name!r} {self.datatype} [{', '.join(map(str, self.shape))}]"


def _check(datatype: str, shape: Sequence[int]) -> None:
    if datatype not in DATATYPES:
        raise ValueError(f"datatype {datatype!r} is not one of {', '.join(DATATYPES)}")
    if prod(shape) > MAX_VALUES:
        raise ValueError(f"a row of shape {list(shape)} has more than {MAX_VALUES} values")


@dataclass(frozen=True)
class Layout:
    """The memory layout of one row of these `tensors`: one array.

    A row of one tensor is an array of the tensor's shape. A row of several is a record, a NumPy
    array of shape () with a field for each. A batch of rows has one axis more in front.
    """

    tensors: tuple[TensorSpec, ...]

    @cached_property
    def is_record(self) -> bool:
        return len(self.tensors) > 1

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        if not self.is_record:
            return self.tensors[0].dtype
        return np.dtype([(each.name, each.dtype, each.shape) for each in self.tensors], align=True)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return () if self.is_record else self.tensors[0].shape

    @cached_property
    def row_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @cached_property
    def row_values(self) -> int:
        """The most values of a row: the bytes of its texts, and its numbers."""
        return sum(prod(each.shape) * (MAX_TEXT if each.is_text else 1) for each in self.tensors)

    def zeros(self, rows: int) -> Array:
        """Return a batch of `rows` rows of zeros and empty texts."""
        zeros = np.zeros((rows, *self.shape), self.dtype)
        for each in self.tensors if zeros.dtype.hasobject else ():
            self.split(zeros)[each.name][...] = each.zeros(rows)
        return zeros

    def draw(self, rng: "np.random.Generator", rows: int) -> dict[str, Array]:
        """Return tensors (rows, *shape) that suit most models: see `TensorSpec.draw`."""
        return {each.name: each.draw(rng, rows) for each in self.tensors}

    def split(self, rows: Array) -> dict[str, Array]:
        """Return the tensors (..., *shape) of a row or of a batch of rows, by name: views."""
        if not self.is_record:
            return {self.tensors[0].name: rows}
        return {each.name: rows[each.name] for each in self.tensors}

    def join(self, tensors: Mapping[str, Array]) -> Array:
        """Return a batch of rows of the `tensors` (n, *shape), by name; a single one as it is.

        Raises ValueError for tensors of another shape.
        """
        first = self.tensors[0]
        if not self.is_record:
            return tensors[first.name]
        rows = self.zeros(len(tensors[first.name]))
        for each in self.tensors:
            found, needed = tensors[each.name].shape, (len(rows), *each.shape)
            if found != needed:
                raise ValueError(f"{each.name!r} has shape {list(found)}, not {list(needed)}")
            rows[each.name] = tensors[each.name]
        return rows

    def unpack(self, data: bytes | memoryview, rows: int) -> Array:
        """Return the `rows` rows in `data` (see `pack`), without a copy if there are only numbers
        and they are aligned. Raises ValueError if the data do not fit."""
        view = memoryview(data)
        if not self.dtype.hasobject:
            size = rows * self.row_bytes
            if view.nbytes != size:
                raise ValueError(f"{view.nbytes} bytes, where {rows} rows of {self} have {size}")
            values = np.frombuffer(data, self.dtype).reshape(rows, *self.shape)
            # A message may begin at any address of a receive buffer.
            return values if values.flags.aligned else values.copy()
        if not self.is_record:
            return read_texts(view, (rows, *self.shape))
        unpacked, at = np.empty((rows, *self.shape), self.dtype), 0
        for row in range(rows):
            for each in self.tensors:
                if each.is_text:
                    found, at = take_texts(view, at, each.shape)
                else:
                    end = at + prod(each.shape) * each.dtype.itemsize
                    found, at = np.frombuffer(view[at:end], each.dtype).reshape(each.shape), end
                unpacked[each.name][row, ...] = found
        if at != view.nbytes:
            raise ValueError(f"{view.nbytes} bytes, where {rows} rows of {self} have {at}")
        return unpacked

    def __str__(self) -> str:
        return ", ".join(map(str, self.tensors))


def pack(rows: Array) -> bytes | memoryview:
    """Return the content of a row or of a batch of rows, one row after the other: numbers as they
    are in memory, without a copy if they are contiguous, and texts as bytes (see texts.py)."""
    if rows.dtype.hasobject:
        if rows.dtype.names is None:
            return write_texts(rows)
        fields, count = tensors_in(rows.reshape(-1)), rows.size
        return b"".join(bytes(pack(each[row, ...])) for row in range(count) for each in fields)
    whole = np.ascontiguousarray(rows)
    return whole.data if rows.dtype.names is None else whole.view(np.uint8).data


def one_row(tensors: Mapping[str, Array]) -> Array:
    """Return the tensors of one row, without a batch axis, as a row in memory (see Layout)."""
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    fields = [(name, each.dtype, each.shape) for name, each in tensors.items()]
    row = np.zeros((), np.dtype(fields, align=True))
    for name, each in tensors.items():
        row[name] = each
    return row


def tensors_in(rows: Array) -> list[Array]:
    """Return the tensors (..., *shape) of a row or of a batch of rows, in their order: views."""
    names = rows.dtype.names
    return [rows] if names is None else [rows[name] for name in names]


class Axis(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A dynamic axis: the sizes that queries are padded to, ascending; the last is its bound."""

    buckets: Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=MAX_BUCKETS)]

    def __post_init__(self) -> None:
        if list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"the buckets {list(self.buckets)} do not ascend")

    @property
    def bound(self) -> int:
        return self.buckets[-1]


class Kind(NamedTuple):
    """The memory layouts of a query with these sizes of its dynamic axes, and of its prediction."""

    sizes: Sizes
    input: Layout
    output: Layout


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """The inputs and outputs of a model, each in the model's order, and its dynamic axes by name.

    `batch` is the number of rows that the file takes at once; 0: any number.
    """

    inputs: Annotated[tuple[Tensor, ...], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[tuple[Tensor, ...], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]
    axes: dict[Name, Axis] = {}
    batch: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0

    def __post_init__(self) -> None:
        used = {axis for each in (*self.inputs, *self.outputs) for axis in each.axes}
        for axis in used - self.axes.keys():
            raise ValueError(f"axis {axis!r} is dynamic and has no bound")
        for axis in self.axes.keys() - {axis for each in self.inputs for axis in each.axes}:
            raise ValueError(f"axis {axis!r} is in no input")
        bounds = {axis: each.bound for axis, each in self.axes.items()}
        for role, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [each.name for each in tensors]
            if len(set(names)) != len(names):
                raise ValueError(f"two {role} are called {max(names, key=names.count)!r}")
            specs = [each.at(bounds) for each in tensors]
            if sum(prod(each.shape) * each.dtype.itemsize for each in specs) > MAX_ROW_BYTES:
                raise ValueError(f"a row has more than {MAX_ROW_BYTES} bytes")

    @classmethod
    def of(cls, input: TensorSpec, output: TensorSpec) -> "Signature":
        """Return the signature of a model with one input and one output, both of fixed shape."""
        taken, given = (Tensor(each.name, each.datatype, each.shape) for each in (input, output))
        return cls((taken,), (given,))

    @cached_property
    def plain(self) -> Kind | None:
        """The only kind of query of a model without dynamic axes; None if it has some."""
        return None if self.axes else self.kind(())

    def kind(self, sizes: Sequence[int]) -> Kind:
        """Return the kind of queries of these sizes. Raises ValueError for impossible sizes."""
        sizes = tuple(sizes)
        known = self._kinds.get(sizes)
        if known is not None:
            return known
        if len(sizes) != len(self.axes):
            raise ValueError(f"{len(sizes)} sizes for {len(self.axes)} dynamic axes")
        for size, (name, axis) in zip(sizes, self.axes.items(), strict=True):
            if not 1 <= size <= axis.bound:
                raise ValueError(f"axis {name!r} goes from 1 to {axis.bound}, got {size}")
        named = dict(zip(self.axes, sizes, strict=True))
        kind = Kind(
            sizes,
            Layout(tuple(each.at(named) for each in self.inputs)),
            Layout(tuple(each.at(named) for each in self.outputs)),
        )
        if sizes == self.bucket(sizes):  # the number of others is unbounded
            self._kinds[sizes] = kind
        return kind

    def kind_of(self, row: Array) -> Kind:
        """Return the kind of a query (without a batch axis). Raises ValueError if there is none."""
        kind = self.plain
        if kind is None:
            try:
                names = row.dtype.names
                sizes = [(row if names is None else row[n]).shape[at] for n, at in self._places]
            except (IndexError, KeyError, ValueError):
                sizes = []
            kind = self.kind(sizes) if sizes else None
        if kind is None or (row.shape, row.dtype) != (kind.input.shape, kind.input.dtype):
            raise ValueError(f"takes {self}, got {row.dtype} {list(row.shape)}")
        return kind

    def bucket(self, sizes: Sequence[int]) -> Sizes:
        """Return the sizes that queries of these sizes, within bounds, are padded to."""
        return tuple(
            next(each for each in axis.buckets if size <= each)
            for axis, size in zip(self.axes.values(), sizes, strict=True)
        )

    @cached_property
    def smallest(self) -> Kind:
        """The kind of query with the smallest buckets."""
        return self.kind([axis.buckets[0] for axis in self.axes.values()])

    @cached_property
    def largest(self) -> Kind:
        """The kind of query with the largest buckets."""
        return self.kind([axis.bound for axis in self.axes.values()])

    @cached_property
    def _kinds(self) -> dict[Sizes, Kind]:
        return {}

    @cached_property
    def _places(self) -> list[tuple[str, int]]:
        """For each dynamic axis, an input that has it, and its place there."""
        places = {
            axis: (tensor.name, at) for tensor in self.inputs for axis, at in tensor.axes.items()
        }
        return [places[axis] for axis in self.axes]

    def __str__(self) -> str:
        return ", ".join(map(str, self.inputs))


def batches(rows: int, size: int) -> list[list[int]]:
    """Return the rows of each run of a model that takes `size` at once; the last repeats a row."""
    return [[min(i, rows - 1) for i in range(at, at + size)] for at in range(0, rows, size)]


# Rows of unequal size


def pad(batch: Batch, signature: Signature, sizes: Sequence[int]) -> Named:
    """Return a batch padded to the bucket of these sizes. Arrays may be larger along dynamic axes:
    the excess is cut off."""
    kind = signature.kind(signature.bucket(sizes))
    full: Named = {}
    for tensor, spec in zip(signature.inputs, kind.input.tensors, strict=True):
        kept = _real_part(tensor, signature, sizes)
        array = batch[tensor.name][kept]
        if array.shape[1:] != spec.shape:
            array = np.full((len(array), *spec.shape), tensor.fill)
            array[kept] = batch[tensor.name][kept]
        full[tensor.name] = array
    return full


def padded(batch: Batch, signature: Signature, sizes: Sequence[int]) -> Array:
    """Return the batch as `pad` does, as rows in memory (see Layout)."""
    if signature.plain is not None:
        return signature.plain.input.join(batch)
    return signature.kind(signature.bucket(sizes)).input.join(pad(batch, signature, sizes))


def cut(outputs: Array, signature: Signature, sizes: Sequence[int]) -> Named:
    """Return rows of outputs (see Layout) by name, cut back to queries of these sizes."""
    if signature.plain is not None:
        return signature.plain.output.split(outputs)
    kind = signature.kind(signature.bucket(sizes))
    tensors = kind.output.split(outputs)
    for tensor in signature.outputs if kind.sizes != tuple(sizes) else ():
        tensors[tensor.name] = tensors[tensor.name][_real_part(tensor, signature, sizes)]
    return tensors


def _real_part(tensor: Tensor, signature: Signature, sizes: Sequence[int]) -> tuple[slice, ...]:
    named = dict(zip(signature.axes, sizes, strict=True))
    return (slice(None), *(slice(named.get(cast(str, each))) for each in tensor.shape))
