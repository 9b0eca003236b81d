"""Labels of the user's, in an array or in a file: .npy or .npz. Nothing is unpickled."""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parity_models.errors import DataError
from parity_models.models.queries import LABELS, read_arrays
from parity_models.tasks.metrics import METRICS, check_boxes

Array = NDArray[Any]


def load_labels(
    given: Path | str | ArrayLike, metric: str, rows: int, output_shape: tuple[int, ...]
) -> Array:
    """Return the labels of queries.

    Args:
        given: an array, or a file of one, or of one called "labels".
        metric: the metric that judges.
        rows: the number of queries.
        output_shape: the shape of a prediction.

    Returns:
        Classes, int64 (n,), where the metric judges classes, else float32 (n, *output_shape), which
        may be given as (n,) where predictions are single numbers.

    Raises:
        DataError: the labels do not fit.

    """
    if isinstance(given, str | Path):
        path, labels = str(given), _read(Path(given))
    else:
        path, labels = "the array of labels", np.asarray(given)
    if METRICS[metric].kind != "classes":
        with np.errstate(over="ignore"):  # infinities are refused afterwards
            labels = labels.astype(np.float32)  # integers, too: not scaled as pixels are
        if labels.ndim == 1 and prod(output_shape) == 1:
            labels = labels.reshape(-1, *output_shape)
        check_floats(labels, output_shape, f"labels in {path}")
        check_boxes(metric, labels, f"labels in {path}")
    elif labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds {labels.dtype} of shape {labels.shape}; the labels for {metric} are "
            "classes, integers of shape (n,)"
        )
    elif labels.size and not 0 <= labels.min() <= labels.max() < output_shape[0]:
        raise DataError(
            f"{path} holds classes from {labels.min()} to {labels.max()}; the model tells "
            f"{output_shape[0]} apart, 0 to {output_shape[0] - 1}"
        )
    else:
        labels = labels.astype(np.int64)
    if len(labels) != rows:
        raise DataError(f"{path} holds {len(labels)} labels for {rows} inputs; give one for each")
    return labels


def check_floats(array: Array, shape: tuple[int, ...], what: str) -> None:
    """Raise DataError unless `array` is finite float32 (n, *shape)."""
    if array.shape[1:] != shape or array.ndim == 0 or array.dtype != np.float32:
        raise DataError(
            f"the {what} are {array.dtype} of shape {array.shape}; the model takes float32 of "
            f"shape ({', '.join(map(str, ('n', *shape)))})"
        )
    if not len(array):
        raise DataError(f"there are 0 {what}, too few")
    if not np.isfinite(array).all():
        raise DataError(f"the {what} hold NaN or infinite values; leave such rows out")


def _read(path: Path) -> Array:
    arrays = read_arrays(path, labels=True)
    if len(arrays) > 1 and LABELS not in arrays:
        raise DataError(f"{path} holds {', '.join(arrays)}; call the array to be read {LABELS!r}")
    return arrays[LABELS] if LABELS in arrays else next(iter(arrays.values()))
