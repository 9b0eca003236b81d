"""Does a parity model keep the slots of its code apart, and is a backup one of them? Tried out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.tensor import Layout

Array = NDArray[Any]

ROUNDING = 1e-4
"""By how much of the largest output two computations of the same may differ."""

TRIED = 8
"""Groups that are tried of each slot, as well as those with extreme values in it."""


def find_leak(code: Code, queries: Layout, model: OnnxModel) -> tuple[int, int] | None:
    """Two slots of `code`, where what is in the first changes what `model` says of the second.

    None if no bit of another slot's prediction changes, whatever is put into a slot: honest-looking
    values, zeros, and the largest that there are. `queries` says what queries are; the model takes
    the code's parity queries, and its decoder is one that reads slots off apart.
    """
    rng = np.random.default_rng(0)
    first = [_draw(rng, queries) for _ in range(code.k)]
    before = _predictions(code, model, first)
    for slot in range(code.k):
        for changed in _changes(rng, queries):
            group = [changed if i == slot else query for i, query in enumerate(first)]
            after = _predictions(code, model, group)
            for other in range(code.k):
                if other != slot and not np.array_equal(before[other], after[other], True):
                    return slot, other
    return None


def is_slot(code: Code, parity: OnnxModel, backup: OnnxModel) -> bool:
    """Does `backup` answer a query as `parity`, whose slots `code` keeps apart, does in the first?

    As nearly as rounding allows: outputs of a batch of one need not be bit by bit those of a larger
    one.
    """
    if not code.isolated:
        return False
    rng = np.random.default_rng(0)
    queries = backup.signature.smallest.input
    for _ in range(TRIED):
        group = [_draw(rng, queries) for _ in range(code.k)]
        expected, found = _predictions(code, parity, group)[0], backup(group[0])
        if found.shape != expected.shape:
            return False
        most = float(np.abs(expected).max(initial=0.0))
        if not np.allclose(found, expected, rtol=0, atol=ROUNDING * most):
            return False
    return True


def _predictions(code: Code, model: OnnxModel, queries: list[Array]) -> dict[int, Array]:
    # Code may have r parity models of the same kind; each is tried as if it were the only one here.
    with np.errstate(over="ignore", invalid="ignore"):
        output = model(code.encode(queries)[0])
        return code.decode([None] * code.k, [output] + [None] * (code.r - 1))


def _changes(rng: np.random.Generator, queries: Layout) -> list[Array]:
    """Queries (1, *shape): extreme values, except in records, whose integers may be indices."""
    drawn = [_draw(rng, queries) for _ in range(TRIED)]
    if queries.is_record:
        return [queries.zeros(1), *drawn]
    dtype, shape = queries.dtype, queries.shape
    if dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        extremes = [0.0, most, -most, min(1e30, most), 1e4, 1e-4]
    elif dtype.kind == "b":
        extremes = [0, 1]
    else:
        extremes = [0, int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)]
    filled = [np.full((1, *shape), value, dtype) for value in extremes]
    return [*filled, *drawn]


def _draw(rng: np.random.Generator, queries: Layout) -> Array:
    return queries.join(
        {
            each.name: rng.normal(size=(1, *each.shape)).astype(each.dtype)
            if each.dtype.kind == "f"
            else rng.integers(0, 2, (1, *each.shape)).astype(each.dtype)
            for each in queries.tensors
        }
    )
