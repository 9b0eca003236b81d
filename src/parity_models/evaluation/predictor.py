"""A model as a function of any number of rows."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError
from parity_models.models.onnx_model import OnnxModel

Array = NDArray[Any]
Run = Callable[[Array], Array]
"""A model: (n, *query_shape) to (n, *output_shape)."""

BATCH = 256
"""Rows that a model runs over at a time: more would gain nothing and take more memory."""


def load(path: Path) -> OnnxModel:
    """The model at `path`, on all cores. Raises ModelError for what is no model."""
    return OnnxModel(path, threads=os.cpu_count() or 1)


def predictor(path: Path, *, batch: int = BATCH, tell: Callable[[int], None] | None = None) -> Run:
    """The model at `path`, run over `batch` rows at a time; `tell` is told how many are done.

    The function raises DataError for outputs that are not finite.
    """
    model = load(path)

    def run(inputs: Array) -> Array:
        parts = []
        for start in range(0, len(inputs), batch):
            parts.append(finite(model(inputs[start : start + batch]), path))
            if tell is not None:
                tell(len(parts[-1]))
        return np.concatenate(parts)

    return run


def finite(outputs: Array, path: Path) -> Array:
    """The outputs of the model at `path`, as they are; DataError if some are NaN or infinite."""
    if not np.isfinite(outputs).all():
        raise DataError(
            f"{path.name} gives NaN or infinite values for some of the queries; leave those out, "
            "or check that they are scaled as the model expects them"
        )
    return outputs
