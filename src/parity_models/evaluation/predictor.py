"""A model as a function of any number of rows."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    """The model at `path`, run over `batch` rows at a time; `tell` is told how many are done."""
    model = load(path)

    def run(inputs: Array) -> Array:
        parts = []
        for start in range(0, len(inputs), batch):
            parts.append(model(inputs[start : start + batch]))
            if tell is not None:
                tell(len(parts[-1]))
        return np.concatenate(parts)

    return run
