"""Golden queries: rows for which a model's outputs are known, to know the model by.

An instance that runs another model, or whose memory or arithmetic is broken, answers them wrongly.
"""

from collections.abc import Mapping
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.models.bundle import Bundle
from parity_models.models.envelope import Envelope
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.tensor import TensorSpec
from parity_models.scheduling import BACKUP, DEPLOYED, parity_work

Array = NDArray[Any]

GOLDEN = 8
"""Golden queries of a model. Units that one of them leaves at 0 are lit by others."""

FAR = 3.0
"""Deviations from the mean, at most, of every value of a golden query; half of it at least."""

RUNS = (1, 4, 16, 64)
"""Neighbours that have the same sign, in one golden query after the other: fine and coarse ones
differ in what they light. Measured: docs/results/isolation.md."""

_SEED = 12


def golden(
    bundle: Bundle, models: Mapping[str, OnnxModel], count: int = GOLDEN
) -> dict[str, tuple[Array, Array]]:
    """The golden queries (n, *input shape) and their outputs, for each work that has a model here.

    Parity models get parity queries of the deployed model's. There are `count` of each, but fewer
    or none of a work where `golden_queries` finds so.
    """
    code, deployed = bundle.code(), bundle.manifest.deployed.input
    rows = golden_rows(deployed, bundle.envelope(), max(count, 0 if code is None else code.k))
    queries = {DEPLOYED: rows[:count], BACKUP: rows[:count]}
    if code is not None:
        # Query i is in slot 0 of group i, in slot 1 of the group before, and so on.
        slots = [np.roll(rows, -slot, axis=0)[:count] for slot in range(code.k)]
        queries |= {parity_work(j): parity for j, parity in enumerate(code.encode(slots))}
    found = {
        work: golden_queries(models[work], count, asked)
        for work, asked in queries.items()
        if work in models
    }
    return {work: both for work, both in found.items() if both is not None}


def golden_queries(
    model: OnnxModel, count: int = GOLDEN, rows: Array | None = None
) -> tuple[Array, Array] | None:
    """Up to `count` rows (n, *input shape), and the model's outputs for them (n, *output shape).

    They are taken from `rows`, by default `golden_rows` without an envelope. Each is run alone, as
    instances will run it. Rows that the model cannot run, or that give values that are not finite,
    are left out. None if no row is left, or if outputs differ from run to run: such a model cannot
    be known by its outputs.
    """
    if rows is None:
        rows = golden_rows(model.input, None, count)
    kept: list[Array] = []
    outputs: list[Array] = []
    for row in (*rows, model.input.zeros(1)[0]):
        if len(kept) == count:
            break
        try:
            output = model(row[np.newaxis])[0]
            again = output if kept else model(row[np.newaxis])[0]
        except Exception:  # ONNX Runtime's errors share no base class but this
            continue
        if not np.array_equal(output, again, equal_nan=True):
            return None
        if output.dtype.kind != "f" or np.isfinite(output).all():
            kept.append(row)
            outputs.append(output)
    return (np.stack(kept), np.stack(outputs)) if kept else None


def golden_rows(spec: TensorSpec, envelope: Envelope | None, count: int) -> Array:
    """Inputs (count, *shape) as `spec` says, far from the mean by the envelope, drawn by a fixed
    seed.

    Without an envelope the mean is taken for 0 and the deviation for 1. Integers are 0 and 1 then:
    they may be indices.
    """
    rng = np.random.default_rng(_SEED)
    values = prod(spec.shape)
    rows = np.empty((count, values))
    for i, row in enumerate(rows):
        run = min(RUNS[i % len(RUNS)], ceil(values / len(RUNS)))
        row[:] = np.repeat(rng.choice((-1.0, 1.0), ceil(values / run)), run)[:values]
    rows = rows.reshape(count, *spec.shape)
    if spec.dtype.kind == "b" or (spec.dtype.kind != "f" and envelope is None):
        return (rows > 0).astype(spec.dtype)
    rows *= rng.uniform(FAR / 2, FAR, rows.shape)
    if envelope is not None:
        rows = envelope.center + envelope.spread * rows
    dtype: np.dtype[Any] = spec.dtype
    if dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        return np.clip(rows, -most, most).astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(rows), limits.min, limits.max).astype(dtype)
