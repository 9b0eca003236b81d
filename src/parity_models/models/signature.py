"""A model's signature: its named inputs and outputs, and which of their axes are dynamic.

A query is one row of every input, and its prediction one row of every output. An axis that is
dynamic has a name, a bound, and a few sizes that queries are padded to, its buckets: queries of one
bucket are batched and coded together, others never are.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import ModelError
from parity_models.models.tensor import (
    DATATYPES,
    Layout,
    Name,
    Size,
    TensorSpec,
    check_datatype,
    check_values,
)

Array = NDArray[Any]
Sizes = tuple[int, ...]
"""The sizes of a signature's dynamic axes, in the order of their names in it."""

MAX_BUCKETS = 16
MAX_TENSORS = 64
MAX_ROW_BYTES = 2**31 - 1
"""Bytes of one row of all inputs, or of all outputs, at most."""


class Axis(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A dynamic axis: the sizes that queries are padded to, ascending; the last is its bound."""

    buckets: Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=MAX_BUCKETS)]

    def __post_init__(self) -> None:
        if list(self.buckets) != sorted(set(self.buckets)):
            raise ValueError(f"the buckets {list(self.buckets)} do not ascend")

    @property
    def bound(self) -> int:
        return self.buckets[-1]

    def bucket(self, size: int) -> int:
        """Return the bucket of a size of 1 to the bound."""
        return next(each for each in self.buckets if size <= each)


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of a model, whose `shape` (of one row) has names where axes are dynamic.

    `padding` is the value that shorter rows are filled up with; it means nothing in an output.
    """

    name: Name
    datatype: str
    shape: Annotated[tuple[Size | Name, ...], msgspec.Meta(max_length=32)]
    padding: float = 0.0

    def __post_init__(self) -> None:
        check_datatype(self.datatype)
        check_values([each for each in self.shape if isinstance(each, int)])
        with np.errstate(all="ignore"):
            held = np.float64(self.padding).astype(self.dtype)
        if not (float(held) == self.padding or self.dtype.kind == "f"):
            raise ValueError(f"{self.datatype} of {self.name!r} cannot hold {self.padding:g}")

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return DATATYPES[self.datatype]

    @property
    def axes(self) -> dict[str, int]:
        """Its dynamic axes, and where in its shape each is."""
        return {each: i for i, each in enumerate(self.shape) if isinstance(each, str)}

    @property
    def fixed(self) -> TensorSpec | None:
        """It as a tensor without dynamic axes; None if it has some."""
        return None if self.axes else self.at({})

    def at(self, sizes: Mapping[str, int]) -> TensorSpec:
        """Return the tensor with these sizes of its dynamic axes."""
        shape = tuple(each if isinstance(each, int) else sizes[each] for each in self.shape)
        return TensorSpec(self.name, self.datatype, shape)

    def __str__(self) -> str:
        return f"{self.name!r} {self.datatype} [{', '.join(map(str, self.shape))}]"


def tensor_of(spec: TensorSpec) -> Tensor:
    """Return a tensor without dynamic axes."""
    return Tensor(spec.name, spec.datatype, spec.shape)


class Kind(NamedTuple):
    """Queries whose dynamic axes have these sizes: how a query and its prediction lie in memory."""

    sizes: Sizes
    input: Layout
    output: Layout


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """The inputs and outputs of a model, each in the model's order, and its dynamic axes by name.

    `batch` is the only number of rows that the model takes at once; 0: any.
    """

    inputs: Annotated[tuple[Tensor, ...], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[tuple[Tensor, ...], msgspec.Meta(min_length=1, max_length=MAX_TENSORS)]
    axes: dict[Name, Axis] = {}
    batch: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0

    def __post_init__(self) -> None:
        for role, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [each.name for each in tensors]
            if len(set(names)) != len(names):
                raise ValueError(f"two {role} are called {max(names, key=names.count)!r}")
        used = {axis for each in self.inputs for axis in each.axes}
        for axis in {axis for each in (*self.inputs, *self.outputs) for axis in each.axes}:
            if axis not in self.axes:
                raise ValueError(f"axis {axis!r} is dynamic and has no bound")
        for axis in self.axes:
            if axis not in used:
                raise ValueError(f"axis {axis!r} is of no input")
        bounds = {axis: each.bound for axis, each in self.axes.items()}
        for tensors in (self.inputs, self.outputs):
            specs = [each.at(bounds) for each in tensors]
            if sum(prod(each.shape) * each.dtype.itemsize for each in specs) > MAX_ROW_BYTES:
                raise ValueError(f"a row has more than {MAX_ROW_BYTES} bytes")

    @classmethod
    def of(cls, input: TensorSpec, output: TensorSpec) -> "Signature":
        """Return the signature of a model with one input and one output, both of fixed shape."""
        return cls((tensor_of(input),), (tensor_of(output),))

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
        if sizes == self.bucket(sizes):  # of others there is no end
            self._kinds[sizes] = kind
        return kind

    def kind_of(self, row: Array) -> Kind:
        """Return the kind of a query (without a batch axis). Raises ValueError if there is none."""
        plain = self.plain
        if plain is not None:
            if not plain.input.fits(row):
                raise ValueError(f"takes {plain.input}, got {row.dtype} {list(row.shape)}")
            return plain
        kind = self.kind([self._size_in(row, *place) for place in self._places])
        if not kind.input.fits(row):
            raise ValueError(f"takes {self}, got {row.dtype} {list(row.shape)}")
        return kind

    def bucket(self, sizes: Sequence[int]) -> Sizes:
        """Return the sizes that queries of these sizes, within bounds, are padded to."""
        axes = self.axes.values()
        return tuple(axis.bucket(size) for axis, size in zip(axes, sizes, strict=True))

    @cached_property
    def smallest(self) -> Kind:
        """The kind of query with the smallest buckets."""
        return self.kind([axis.buckets[0] for axis in self.axes.values()])

    @cached_property
    def largest(self) -> Kind:
        """The kind of query with the largest buckets."""
        return self.kind([axis.bound for axis in self.axes.values()])

    @property
    def input(self) -> TensorSpec:
        """The one input of fixed shape. Raises ModelError for a model that has others."""
        return _only("input", self.inputs)

    @property
    def output(self) -> TensorSpec:
        """The one output of fixed shape. Raises ModelError for a model that has others."""
        return _only("output", self.outputs)

    @cached_property
    def _kinds(self) -> dict[Sizes, Kind]:
        return {}

    @cached_property
    def _places(self) -> tuple[tuple[str, int], ...]:
        """For each dynamic axis an input that has it, and where."""
        places = {
            axis: (tensor.name, at) for tensor in self.inputs for axis, at in tensor.axes.items()
        }
        return tuple(places[axis] for axis in self.axes)

    def _size_in(self, row: Array, tensor: str, at: int) -> int:
        try:
            return int((row if row.dtype.names is None else row[tensor]).shape[at])
        except (IndexError, KeyError, ValueError):
            raise ValueError(f"takes {self}, got {row.dtype} {list(row.shape)}") from None

    def __str__(self) -> str:
        return ", ".join(map(str, self.inputs))


def _only(role: str, tensors: tuple[Tensor, ...]) -> TensorSpec:
    spec = tensors[0].fixed
    if len(tensors) > 1 or spec is None:
        raise ModelError(
            f"the model has the {role}s {', '.join(map(str, tensors))}, where this works with one "
            f"{role} of fixed shape"
        )
    return spec
