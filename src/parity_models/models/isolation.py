"""Does a parity model keep the slots of its code apart? Tried, with what could cross over."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.models.onnx_model import OnnxModel

Array = NDArray[Any]

TRIED = 8
"""Groups that are tried of each slot, as well as those with extreme values in it."""


def find_leak(code: Code, model: OnnxModel) -> tuple[int, int] | None:
    """Two slots of `code`, where what is in the first changes what `model` says of the second.

    None if no bit of another slot's prediction changes, whatever is put into a slot: honest-looking
    values, zeros, and the largest that there are. The model takes the code's parity queries, and
    its decoder is one that reads slots off apart.
    """
    dtype = model.input.dtype
    rng = np.random.default_rng(0)
    queries = [_draw(rng, (1, *code.query_shape), dtype) for _ in range(code.k)]
    before = _predictions(code, model, queries)
    for slot in range(code.k):
        for changed in _changes(rng, code.query_shape, dtype):
            group = [changed if i == slot else query for i, query in enumerate(queries)]
            after = _predictions(code, model, group)
            for other in range(code.k):
                if other != slot and not np.array_equal(before[other], after[other], True):
                    return slot, other
    return None


def _predictions(code: Code, model: OnnxModel, queries: list[Array]) -> dict[int, Array]:
    # Code may have r parity models of the same kind; each is tried as if it were the only one here.
    with np.errstate(over="ignore", invalid="ignore"):
        output = model(code.encode(queries)[0])
        return code.decode([None] * code.k, [output] + [None] * (code.r - 1))


def _changes(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[Array]:
    if dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        extremes = [0.0, most, -most, min(1e30, most), 1e4, 1e-4]
    elif dtype.kind == "b":
        extremes = [0, 1]
    else:
        extremes = [0, int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
    filled = [np.full((1, *shape), value, dtype) for value in extremes]
    return [*filled, *(_draw(rng, (1, *shape), dtype) for _ in range(TRIED))]


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)
