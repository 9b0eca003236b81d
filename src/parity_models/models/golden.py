"""Golden queries: rows for which a model's outputs are known, to know the model by.

An instance that runs another model, or whose memory or arithmetic is broken, answers them wrongly.
"""

from collections.abc import Mapping
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.models.bundle import Bundle
from parity_models.models.envelope import Numbers
from parity_models.models.named_envelope import AnyEnvelope, numbers_in
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.tensor import Layout, TensorSpec, tensors_in
from parity_models.roles import BACKUPS, DEPLOYED, parity_role

Array = NDArray[Any]

GOLDEN = 8
"""Golden queries of a model. Units that one of them leaves at 0 are lit by others."""

FAR = 3.0
"""Deviations from the mean, at most, of every value of a golden query; half of it at least."""

RUNS = (1, 4, 16, 64)
"""Neighbours that have the same sign, in one golden query after the other: fine and coarse ones
differ in what they light."""

_SEED = 12


def golden(
    bundle: Bundle, models: Mapping[str, OnnxModel], count: int = GOLDEN
) -> dict[str, tuple[Array, Array]]:
    """The golden queries (n, *input shape) and their outputs, for each work that has a model here.

    Parity models get parity queries of the deployed model's. There are `count` of each, but fewer
    or none of a role where `golden_queries` finds so.
    """
    code, deployed = bundle.code(), bundle.manifest.deployed.signature.smallest.input
    rows = golden_rows(deployed, bundle.envelope(), max(count, 0 if code is None else code.k))
    queries = dict.fromkeys((DEPLOYED, *BACKUPS), rows[:count])
    if code is not None:
        # Query i is in slot 0 of group i, in slot 1 of the group before, and so on.
        slots = [np.roll(rows, -slot, axis=0)[:count] for slot in range(code.k)]
        queries |= {parity_role(j): parity for j, parity in enumerate(code.encode(slots))}
    found = {
        role: golden_queries(models[role], count, asked)
        for role, asked in queries.items()
        if role in models
    }
    return {role: both for role, both in found.items() if both is not None}


def golden_queries(
    model: OnnxModel, count: int = GOLDEN, rows: Array | None = None
) -> tuple[Array, Array] | None:
    """Up to `count` rows (n, *input shape), and the model's outputs for them (n, *output shape).

    They are taken from `rows`, by default `golden_rows` without an envelope. Each is run alone, as
    instances will run it. Rows that the model cannot run, or that give values that are not finite,
    are left out. None if no row is left, or if outputs differ from run to run: such a model cannot
    be known by its outputs.
    """
    layout = model.signature.smallest.input
    if rows is None:
        rows = golden_rows(layout, None, count)
    kept: list[Array] = []
    outputs: list[Array] = []
    for row in (*(rows[i : i + 1] for i in range(len(rows))), layout.zeros(1)):
        if len(kept) == count:
            break
        try:
            output = model(row)
            again = output if kept else model(row)
        except Exception:  # ONNX Runtime's errors share no base class but this
            continue
        pairs = zip(tensors_in(output), tensors_in(again), strict=True)
        if not all(np.array_equal(one, other, equal_nan=True) for one, other in pairs):
            return None
        if all(each.dtype.kind != "f" or np.isfinite(each).all() for each in tensors_in(output)):
            kept.append(row)
            outputs.append(output)
    return (np.concatenate(kept), np.concatenate(outputs)) if kept else None


def golden_rows(queries: Layout, envelope: AnyEnvelope | None, count: int) -> Array:
    """Queries (count, *shape) that lie as `queries` says, far from the mean by the envelope, drawn
    by a fixed seed.

    Where it does not say it, the mean is taken for 0 and the deviation for 1. Integers are 0 and 1
    then: they may be indices.
    """
    drawn = {
        spec.name: _rows(spec, numbers_in(envelope, spec.name), count, _SEED + i)
        for i, spec in enumerate(queries.tensors)
    }
    return queries.join(drawn)


def _rows(spec: TensorSpec, numbers: Numbers | None, count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    values = prod(spec.shape)
    rows = np.empty((count, values))
    for i, row in enumerate(rows):
        run = min(RUNS[i % len(RUNS)], ceil(values / len(RUNS)))
        row[:] = np.repeat(rng.choice((-1.0, 1.0), ceil(values / run)), run)[:values]
    rows = rows.reshape(count, *spec.shape)
    if spec.dtype.kind == "b" or (spec.dtype.kind != "f" and numbers is None):
        return (rows > 0).astype(spec.dtype)
    rows *= rng.uniform(FAR / 2, FAR, rows.shape)
    if numbers is not None:
        rows = numbers.center + numbers.spread * rows
    dtype: np.dtype[Any] = spec.dtype
    if dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        return np.clip(rows, -most, most).astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(rows), limits.min, limits.max).astype(dtype)
