"""Tensors of a model, and how a row of them lies in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

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
}
"""The Open Inference Protocol's tensor data types that models here can have."""

MAX_VALUES = 2**28
"""Values of one row at most: 1 GiB of FP32."""

Size = Annotated[int, msgspec.Meta(ge=1, le=MAX_VALUES)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name, data type and shape of a tensor.

    `datatype` is a name of the Open Inference Protocol (a key of DATATYPES); `shape` is that of
    one row, without the batch axis.
    """

    name: Name
    datatype: str
    shape: Annotated[tuple[Size, ...], msgspec.Meta(max_length=32)]

    def __post_init__(self) -> None:
        check_datatype(self.datatype)
        check_values(self.shape)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return DATATYPES[self.datatype]

    def zeros(self, rows: int) -> NDArray[np.generic]:
        """A batch of `rows` rows of zeros: (rows, *shape)."""
        return np.zeros((rows, *self.shape), self.dtype)

    def __str__(self) -> str:
        return f"{self.name!r} {self.datatype} {list(self.shape)}"


def check_datatype(datatype: str) -> None:
    """Raise ValueError unless it is a key of DATATYPES."""
    if datatype not in DATATYPES:
        raise ValueError(f"datatype {datatype!r} is not one of {', '.join(DATATYPES)}")


def check_values(shape: Sequence[int]) -> None:
    """Raise ValueError for a row of more than MAX_VALUES values."""
    if prod(shape) > MAX_VALUES:
        raise ValueError(f"a row of shape {list(shape)} has more than {MAX_VALUES} values")


@dataclass(frozen=True)
class Layout:
    """How one row of these `tensors` lies in memory, so that it is one array whatever it holds.

    A row of one tensor is an array of the tensor's shape. A row of several is a record, a NumPy
    array of shape () with a field for each, called as the tensor is. A batch of rows has one axis
    more in front.
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
        return sum(prod(each.shape) for each in self.tensors)

    def zeros(self, rows: int) -> Array:
        """A batch of `rows` rows of zeros."""
        return np.zeros((rows, *self.shape), self.dtype)

    def draw(self, rng: "np.random.Generator", rows: int) -> dict[str, Array]:
        """Return tensors (rows, *shape) that most models take: numbers from 0 to 1, integers 0 or
        1."""
        return {
            each.name: rng.random((rows, *each.shape)).astype(each.dtype)
            if each.dtype.kind == "f"
            else rng.integers(0, 2, (rows, *each.shape)).astype(each.dtype)
            for each in self.tensors
        }

    def fits(self, row: Array) -> bool:
        """Return whether `row`, without a batch axis, is a row of these tensors."""
        return row.shape == self.shape and row.dtype == self.dtype

    def split(self, rows: Array) -> dict[str, Array]:
        """Return the tensors (..., *shape) of a row or of a batch of rows, by name: views."""
        if not self.is_record:
            return {self.tensors[0].name: rows}
        return {each.name: rows[each.name] for each in self.tensors}

    def join(self, tensors: Mapping[str, Array]) -> Array:
        """Return a batch of rows of the `tensors` (n, *shape), by name: of one, the array itself.

        Raises ValueError for tensors of another shape.
        """
        first = self.tensors[0]
        if not self.is_record:
            return tensors[first.name]
        rows = self.zeros(len(tensors[first.name]))
        for each in self.tensors:
            if tensors[each.name].shape != (len(rows), *each.shape):
                raise ValueError(
                    f"{each.name!r} has shape {list(tensors[each.name].shape)}, not "
                    f"{[len(rows), *each.shape]}"
                )
            rows[each.name] = tensors[each.name]
        return rows

    def __str__(self) -> str:
        return ", ".join(map(str, self.tensors))


def one_row(tensors: Mapping[str, Array]) -> Array:
    """Return the tensors of one row, without a batch axis, as they lie in memory (see Layout)."""
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
