"""The queries that a load draws from, and the right answers to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError, LoadError
from parity_models.load.target import Target, is_shape
from parity_models.models.queries import LABELS
from parity_models.models.signature import DATATYPES
from parity_models.tasks import METRICS, check_labels


@dataclass(frozen=True)
class Queries:
    """Inputs (n, ...) by name, and labels (n, ...) in the same order or None.

    `open_axes` are the axes of no fixed size, each as the inputs that have it and where (0 is the
    batch axis).
    """

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any] | None
    open_axes: Sequence[Sequence[tuple[str, int]]] = ()

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @classmethod
    def read(cls, path: str, labels: str | None = None) -> "Queries":
        """Read an .npy file of inputs, or an .npz file with `inputs`, or else an array per input.

        Args:
            path: The file.
            labels: An .npy file of labels; by default the .npz file's `labels`, if it has them.

        Raises:
            LoadError: The files cannot be read or do not fit each other.

        """
        arrays = _read(path)
        own_labels = arrays.pop(LABELS, None)
        if "inputs" in arrays:
            arrays = {"inputs": arrays["inputs"]}
        if labels is not None:
            found = _read(labels)
            own_labels = found[LABELS] if LABELS in found else next(iter(found.values()), None)
        counts = {len(each) if each.ndim else 0 for each in arrays.values()}
        if not counts or 0 in counts:
            raise LoadError(f"{path} has no rows of inputs")
        if len(counts) > 1:
            raise LoadError(f"{path} has inputs of unequal numbers of rows: {sorted(counts)}")
        rows = counts.pop()
        if own_labels is not None and (own_labels.ndim == 0 or len(own_labels) != rows):
            raise LoadError(
                f"there are {rows} inputs, but {own_labels.size} labels; each needs its own"
            )
        return cls(arrays, own_labels)

    def fitting(self, target: Target, metric: str) -> "Queries":
        """Return the queries under the names that the target's model has for its inputs.

        Raises:
            LoadError: The model takes other inputs, or `metric` and the labels cannot judge the
                output.

        """
        inputs, specs = self.inputs, target.model.inputs
        if len(specs) == len(inputs) == 1:
            inputs = {specs[0].name: next(iter(inputs.values()))}
        names = [each.name for each in specs]
        if sorted(names) != sorted(inputs):
            raise LoadError(
                f"the model takes {', '.join(names)}, but the queries are {', '.join(inputs)}"
            )
        axes: dict[int, list[tuple[str, int]]] = {}
        for each in specs:
            rows, dtype = inputs[each.name], DATATYPES[each.datatype]
            if rows.dtype != dtype or not is_shape(rows.shape, each.shape):
                raise LoadError(
                    f"the model takes rows of {dtype} {list(each.shape[1:])}, but the queries are "
                    f"of {rows.dtype} {list(rows.shape[1:])}; convert them"
                )
            for at, size in enumerate(each.shape):
                if at and size < 0:  # those of one size in the file are taken for one
                    axes.setdefault(rows.shape[at], []).append((each.name, at))
        if metric not in METRICS:
            raise LoadError(f"no metric is called {metric!r}; there are {', '.join(METRICS)}")
        if self.labels is not None:
            output = target.judged
            if -1 in output.shape[1:]:
                raise LoadError(
                    f"output {output.name!r} has no fixed shape, so that labels cannot judge it; "
                    "leave them out, or ask for another output"
                )
            row = np.zeros((1, *output.shape[1:]), DATATYPES[output.datatype])
            try:
                check_labels(metric, row, self.labels[:1])
            except DataError as error:
                raise LoadError(f"the labels do not fit the model: {error}") from error
        return Queries(inputs, self.labels, list(axes.values()))

    def take(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the queries with these numbers, cut to the length of the longest of them."""
        taken = {name: array[rows] for name, array in self.inputs.items()}
        for axis in self.open_axes:
            longest = max(_used(taken[name], at) for name, at in axis)
            for name, at in axis:
                taken[name] = taken[name][(slice(None),) * at + (slice(longest),)]
        return taken


def _used(array: NDArray[Any], axis: int) -> int:
    """Return the length of an axis without the zeros that pad it; 1 at least."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    used = np.flatnonzero((array != 0).any(axis=others))
    return int(used[-1]) + 1 if used.size else 1


def _read(path: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file by name, or the array of an .npy file as "inputs"."""
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
