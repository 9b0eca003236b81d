"""Golden queries: rows for which a model's outputs are known, to know the model by."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.models.onnx_model import OnnxModel
from parity_models.models.tensor import TensorSpec

GOLDEN = 8
"""Golden queries of a model."""

_SEED = 12


def golden_queries(
    model: OnnxModel, count: int = GOLDEN
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Up to `count` rows (n, *input shape), and the model's outputs for them (n, *output shape).

    Each is run alone, as instances will run it. Rows that the model cannot run, or that give values
    that are not finite, are left out. None if no row is left, or if outputs differ from run to run:
    such a model cannot be known by its outputs.
    """
    rows: list[NDArray[Any]] = []
    outputs: list[NDArray[Any]] = []
    for row in (*_rows(model.input, count), model.input.zeros(1)[0]):
        if len(rows) == count:
            break
        try:
            output = model(row[np.newaxis])[0]
            again = output if rows else model(row[np.newaxis])[0]
        except Exception:  # ONNX Runtime's errors share no base class but this
            continue
        if not np.array_equal(output, again, equal_nan=True):
            return None
        if output.dtype.kind != "f" or np.isfinite(output).all():
            rows.append(row)
            outputs.append(output)
    return (np.stack(rows), np.stack(outputs)) if rows else None


def _rows(spec: TensorSpec, count: int) -> NDArray[Any]:
    """Random rows (count, *shape), always the same: from 0 to 1 for floating point, else 0 and 1,
    which are indices even into short tables."""
    rng = np.random.default_rng(_SEED)
    shape = (count, *spec.shape)
    drawn = rng.uniform(size=shape) if spec.dtype.kind == "f" else rng.integers(0, 2, size=shape)
    rows: NDArray[Any] = drawn.astype(spec.dtype)
    return rows
