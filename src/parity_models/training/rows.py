"""Queries of several inputs on the device, of integers, or of dynamic shape: a tensor for each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parity_models.models.queries import Named, sizes_in
from parity_models.models.signature import Signature
from parity_models.training.subject import Subject

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Rows:
    """A batch of queries: `tensors` (n, ...) in the order of the signature's inputs.

    `sizes` (n, axes) says how large each query really is along each dynamic axis; `places` where
    each of these is: which inputs, and the axis there. Some of the rows are cut to the largest of
    them, so that nothing is computed for padding that all have.
    """

    tensors: tuple[Tensor, ...]
    sizes: Tensor
    places: tuple[tuple[tuple[int, int], ...], ...]

    @classmethod
    def of(cls, rows: Array, signature: Signature, device: torch.device) -> "Rows":
        """Rows of one kind of the signature's (see models.tensor.Layout)."""
        arrays = signature.kind_of(rows[0, ...]).input.split(rows)
        found = sizes_in(arrays, signature.inputs)
        sizes = np.array([found[axis] for axis in signature.axes], np.int64).T
        places = tuple(
            tuple(
                (i, 1 + each.axes[axis])
                for i, each in enumerate(signature.inputs)
                if axis in each.axes
            )
            for axis in signature.axes
        )
        tensors = (torch.from_numpy(_known(arrays[each.name])) for each in signature.inputs)
        return cls(
            tuple(each.to(device) for each in tensors),
            torch.from_numpy(sizes.reshape(len(rows), -1).copy()),
            places,
        )

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, which: Tensor | slice) -> "Rows":
        here = which.cpu() if isinstance(which, Tensor) else which
        sizes = self.sizes[here]
        tensors = list(self.tensors)
        if len(sizes):
            for longest, places in zip(sizes.amax(0).tolist(), self.places, strict=True):
                for at, axis in places:
                    tensors[at] = tensors[at].narrow(axis, 0, longest)
        return Rows(tuple(each[which] for each in tensors), sizes, self.places)

    def in_groups(self, k: int) -> "Rows":
        """Groups of k rows, one after the other, as rows (n, k, ...)."""
        tensors = tuple(each.unflatten(0, (-1, k)) for each in self.tensors)
        sizes = self.sizes.unflatten(0, (-1, k)).amax(1)
        places = tuple(tuple((at, axis + 1) for at, axis in each) for each in self.places)
        return Rows(tensors, sizes, places)

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    def arrays(self, signature: Signature) -> Named:
        """The same as arrays by name, of the signature's data types."""
        return {
            each.name: tensor.cpu().numpy().astype(each.dtype, copy=False)
            for each, tensor in zip(signature.inputs, self.tensors, strict=True)
        }


DeviceQueries = Tensor | Rows
"""Queries (n, *query_shape) of one float32 input of fixed shape, or others."""


def on_device(rows: Array, subject: Subject, device: torch.device) -> DeviceQueries:
    """Rows of queries as what is trained on takes them."""
    if subject.plain:
        return torch.from_numpy(rows).to(device)
    return Rows.of(rows, subject.signature, device)


def tensor(queries: DeviceQueries) -> Tensor:
    """Queries of one float32 input of fixed shape, which alone can be added up or turned."""
    assert isinstance(queries, Tensor)
    return queries


def run(module: Callable[..., Tensor], queries: DeviceQueries) -> Tensor:
    """What `module` gives for queries: it takes each input apart."""
    outputs: Tensor = module(*queries.tensors) if isinstance(queries, Rows) else module(queries)
    return outputs


def _known(array: Array) -> Array:
    """`array` as torch can index it."""
    wide = array.dtype.kind == "u" and array.dtype.itemsize > 1
    return np.ascontiguousarray(array, np.int64 if wide else None)
