"""The queries that a load draws from, and the right answers to them."""

from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError, LoadError
from parity_models.models.tensor import TensorSpec
from parity_models.tasks import METRICS, check_labels


@dataclass(frozen=True)
class Queries:
    """Inputs (n, *input shape), and labels (n, ...) in the same order or None."""

    inputs: NDArray[Any]
    labels: NDArray[Any] | None

    def check(self, input: TensorSpec, output: TensorSpec, metric: str) -> None:
        """Raises LoadError if a model of `input` and `output` does not take, or get, these."""
        rows = (self.inputs.dtype, self.inputs.shape[1:])
        if rows != (input.dtype, input.shape):
            raise LoadError(
                f"the model takes rows of {input.dtype} {list(input.shape)}, but the queries are "
                f"of {rows[0]} {list(rows[1])}; convert them"
            )
        if metric not in METRICS:
            raise LoadError(f"no metric is called {metric!r}; there are {', '.join(METRICS)}")
        try:
            if self.labels is not None:
                check_labels(metric, output.zeros(1), self.labels[:1])
        except DataError as error:
            raise LoadError(f"the labels do not fit the model: {error}") from error


def read_queries(data: str, labels: str | None = None) -> Queries:
    """Read queries from `data`: an .npy file of inputs, or an .npz file with `inputs`.

    Their labels are in the .npy file `labels`, or else in the .npz file as `labels`, if it has
    them. Raises LoadError for anything else.
    """
    inputs, own_labels = _read(data)
    if labels is not None:
        own_labels, _ = _read(labels, "labels")
    if inputs.ndim == 0 or len(inputs) == 0:
        raise LoadError(f"{data} has no rows of inputs")
    if own_labels is not None and (own_labels.ndim == 0 or len(own_labels) != len(inputs)):
        raise LoadError(
            f"there are {len(inputs)} inputs, but {own_labels.size} labels; each needs its own"
        )
    return Queries(inputs, own_labels)


def _read(path: str, name: str = "inputs") -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The array called `name` and the labels of an .npz file, or the array of an .npy file."""
    try:
        # Mapped, not read: each of several processes has the file open.
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded as arrays:
            return arrays[name], arrays.get("labels")
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, EOFError, BadZipFile) as error:
        raise LoadError(
            f"{path} is neither an .npy file nor an .npz file with {name}: {error}"
        ) from error
