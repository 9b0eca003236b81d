"""The queries that a load draws from, and the right answers to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError, LoadError
from parity_models.load.target import is_shape
from parity_models.models.queries import LABELS
from parity_models.models.tensor import DATATYPES
from parity_models.serving.protocol import ModelMetadata, TensorMetadata
from parity_models.tasks import METRICS, check_labels


@dataclass(frozen=True)
class Queries:
    """Inputs (n, ...) by name, and labels (n, ...) in the same order or None."""

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any] | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def fitting(self, model: ModelMetadata, metric: str, output: TensorMetadata) -> "Queries":
        """The queries as `model` calls its inputs.

        Raises LoadError if it does not take them, or its `output` is none that `metric` judges by
        the labels.
        """
        inputs, names = self.inputs, [each.name for each in model.inputs]
        if len(names) == len(inputs) == 1:
            inputs = {names[0]: next(iter(inputs.values()))}
        if sorted(names) != sorted(inputs):
            raise LoadError(
                f"the model takes {', '.join(names)}, but the queries are {', '.join(inputs)}"
            )
        for each in model.inputs:
            rows = inputs[each.name]
            dtype = DATATYPES[each.datatype]
            if rows.dtype != dtype or not is_shape(rows.shape, each.shape):
                raise LoadError(
                    f"the model takes rows of {dtype} {list(each.shape[1:])}, but the queries are "
                    f"of {rows.dtype} {list(rows.shape[1:])}; convert them"
                )
        if metric not in METRICS:
            raise LoadError(f"no metric is called {metric!r}; there are {', '.join(METRICS)}")
        self._check_labels(output, metric)
        return Queries(inputs, self.labels)

    def _check_labels(self, output: TensorMetadata, metric: str) -> None:
        if self.labels is None:
            return
        if -1 in output.shape[1:]:
            raise LoadError(
                f"output {output.name!r} has no fixed shape, so that labels cannot judge it; leave "
                "them out, or ask for another output"
            )
        try:
            check_labels(
                metric,
                np.zeros((1, *output.shape[1:]), DATATYPES[output.datatype]),
                self.labels[:1],
            )
        except DataError as error:
            raise LoadError(f"the labels do not fit the model: {error}") from error

    def take(self, rows: NDArray[np.int64], open_axes: "OpenAxes") -> dict[str, NDArray[Any]]:
        """The queries with these numbers, as long as the longest of them is."""
        taken = {name: array[rows] for name, array in self.inputs.items()}
        for axis in open_axes:
            longest = max(_used(taken[name], at) for name, at in axis)
            for name, at in axis:
                taken[name] = taken[name][(slice(None),) * at + (slice(longest),)]
        return taken


OpenAxes = Sequence[Sequence[tuple[str, int]]]
"""Axes of no fixed size, each as the inputs that have it and where (0 is the batch axis)."""


def open_axes(queries: Queries, model: ModelMetadata) -> OpenAxes:
    """The open axes of the model's inputs. Those of one size in the file are taken for one."""
    axes: dict[int, list[tuple[str, int]]] = {}
    for each in model.inputs:
        for at, size in enumerate(each.shape):
            if at and size < 0:
                found = queries.inputs[each.name].shape[at]
                axes.setdefault(found, []).append((each.name, at))
    return list(axes.values())


def _used(array: NDArray[Any], axis: int) -> int:
    """The length of an axis without the zeros that pad it; 1 at least."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    used = np.flatnonzero((array != 0).any(axis=others))
    return int(used[-1]) + 1 if used.size else 1


def read_queries(data: str, labels: str | None = None) -> Queries:
    """Read queries from `data`: an .npy file of inputs, or an .npz file with `inputs`, or else with
    an array for each input, by its name.

    Their labels are in the .npy file `labels`, or else in the .npz file as `labels`, if it has
    them. Raises LoadError for anything else.
    """
    arrays = _read(data)
    own_labels = arrays.pop(LABELS, None)
    if "inputs" in arrays:
        arrays = {"inputs": arrays["inputs"]}
    if labels is not None:
        found = _read(labels)
        own_labels = found[LABELS] if LABELS in found else next(iter(found.values()), None)
    counts = {len(each) if each.ndim else 0 for each in arrays.values()}
    if not counts or 0 in counts:
        raise LoadError(f"{data} has no rows of inputs")
    if len(counts) > 1:
        raise LoadError(f"{data} has inputs of unequal numbers of rows: {sorted(counts)}")
    rows = counts.pop()
    if own_labels is not None and (own_labels.ndim == 0 or len(own_labels) != rows):
        raise LoadError(
            f"there are {rows} inputs, but {own_labels.size} labels; each needs its own"
        )
    return Queries(arrays, own_labels)


def _read(path: str) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file by name, or the array of an .npy file as "inputs"."""
    try:
        # Mapped, not read: each of several processes has the file open.
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"inputs": loaded}
        with loaded as arrays:
            return {name: arrays[name] for name in arrays.files}
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, BadZipFile) as error:
        raise LoadError(
            f"{path} is neither an .npy file nor an .npz file with inputs: {error}"
        ) from error
