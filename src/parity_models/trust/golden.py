"""Golden queries: queries with known outputs, by which a model is recognised.

An instance with another model, or with broken memory or arithmetic, answers them wrongly. A bundle
stores some for each stand-in, with the outputs of the machine that made it. If a processor computes
otherwise (such as 8-bit products that saturate), calibration does not hold: the bundle is refused.
"""

from collections.abc import Mapping
from math import ceil, prod
from typing import Any, Protocol

import msgspec
import numpy as np

from parity_models.codes import Code
from parity_models.errors import BundleError
from parity_models.roles import BACKUP, DEPLOYED, parity_role
from parity_models.tensors.queries import renamed, rows_in, take
from parity_models.tensors.signature import Array, Batch, Layout, Named, Signature, TensorSpec
from parity_models.trust.envelope import Envelope, Ids, Part, Texts, load_array, store_array

GOLDEN = 8
"""Golden queries of a model: several, as each leaves some units at 0."""

STORED = 2
"""Golden queries of each stand-in that a bundle holds."""

GOLDEN_FILE = "golden.msgpack"
"""Their file in a bundle."""

TOLERANCE = 0.02
"""The largest difference from a stored output, as a share of the largest value."""

FAR = 3.0
"""Every value of a golden query lies between half and all of this many deviations from the mean."""

RUNS = (1, 4, 16, 64)
"""Lengths of runs of values with the same sign, in one golden query after the other: fine and
coarse ones activate different units."""

_SEED = 12


class Model(Protocol):
    """A model that gives outputs (n, ...) for queries (n, ...), by name."""

    @property
    def signature(self) -> Signature: ...

    def __call__(self, batch: Batch, /) -> Named: ...


def golden(
    code: Code | None,
    queries: Layout,
    envelope: Envelope | None,
    models: Mapping[str, Model],
    count: int = GOLDEN,
) -> dict[str, tuple[Named, Named]]:
    """Return golden queries and their outputs for each role of `models`.

    Parity models get parity queries, made of queries of the layout `queries`. There are `count` of
    each role, fewer or none if the model cannot run them.
    """
    rows = golden_rows(queries, envelope, max(count, 0 if code is None else code.k))
    asked: dict[str, Batch] = dict.fromkeys((DEPLOYED, BACKUP), take(rows, slice(count)))
    if code is not None:
        # Query i is in slot 0 of group i, in slot 1 of the group before, and so on.
        slots = [
            {name: np.roll(each, -slot, axis=0)[:count] for name, each in rows.items()}
            for slot in range(code.k)
        ]
        asked |= {parity_role(j): parity for j, parity in enumerate(code.encode(slots))}
    found = {
        role: _golden_queries(models[role], count, batch)
        for role, batch in asked.items()
        if role in models
    }
    return {role: both for role, both in found.items() if both is not None}


def _golden_queries(model: Model, count: int, queries: Batch) -> tuple[Named, Named] | None:
    """Return up to `count` queries, by the model's inputs, and the model's outputs for them.

    They are taken from `queries`, or zeros, and run one by one, as instances run them. Queries that
    fail, or with outputs that are not finite, are left out. None if no query is left, or if outputs
    differ from run to run: such a model cannot be recognised.
    """
    layout = model.signature.smallest.input
    rows = renamed(queries, model.signature)
    kept: list[tuple[Named, Named]] = []
    each = (take(rows, slice(i, i + 1)) for i in range(rows_in(rows)))
    for row in (*each, layout.split(layout.zeros(1))):
        if len(kept) == count:
            break
        try:
            output = model(row)
            again = output if kept else model(row)
        except Exception:  # ONNX Runtime's errors share no base class but this
            continue
        if not all(is_near(output[name], again[name], 0.0) for name in output):
            return None
        if all(each.dtype.kind != "f" or np.isfinite(each).all() for each in output.values()):
            kept.append((row, output))
    if not kept:
        return None
    inputs, outputs = (
        {name: np.concatenate([each[name] for each in part]) for name in part[0]}
        for part in zip(*kept, strict=True)
    )
    return inputs, outputs


def golden_rows(queries: Layout, envelope: Envelope | None, count: int) -> Named:
    """Return `count` queries of this layout, far from the envelope's mean, drawn by a fixed seed.

    Without an envelope, 0 is the mean and 1 the deviation, and integers are 0 and 1: they may be
    indices. Ids are drawn from their range.
    """
    parts: dict[str, Part] = {}
    if envelope is not None:
        parts = {
            each.name: part for each, part in zip(envelope.inputs, envelope.parts, strict=True)
        }
    return {
        spec.name: _rows(spec, parts.get(spec.name), count, _SEED + i)
        for i, spec in enumerate(queries.tensors)
    }


def _rows(spec: TensorSpec, part: Part | None, count: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if spec.is_text or isinstance(part, Texts):
        return spec.draw(rng, count)
    values = prod(spec.shape)
    if isinstance(part, Ids):
        low, high = np.array(part.low), np.array(part.high)
        drawn = rng.integers(low, high + 1, (count, values))
        return drawn.astype(spec.dtype).reshape(count, *spec.shape)
    rows = np.empty((count, values))
    for i, row in enumerate(rows):
        run = min(RUNS[i % len(RUNS)], ceil(values / len(RUNS)))
        row[:] = np.repeat(rng.choice((-1.0, 1.0), ceil(values / run)), run)[:values]
    rows = rows.reshape(count, *spec.shape)
    dtype: np.dtype[Any] = spec.dtype
    if dtype.kind == "b" or (dtype.kind != "f" and part is None):
        return (rows > 0).astype(dtype)
    rows *= rng.uniform(FAR / 2, FAR, rows.shape)
    if part is not None:
        rows = part.center + part.spread * rows
    if dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        return np.clip(rows, -most, most).astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(rows), limits.min, limits.max).astype(dtype)


# In a bundle


# Made here, and not by the threads that open bundles: see bundle.py.
_FILE = msgspec.msgpack.Decoder(dict[str, tuple[Named, Named]], dec_hook=load_array)


def encode_golden(found: Mapping[str, tuple[Named, Named]]) -> bytes:
    """Return the content of the file of golden queries and outputs, by role: MessagePack."""
    return msgspec.msgpack.encode(found, enc_hook=store_array)


def check_golden(content: bytes, models: Mapping[str, Model]) -> None:
    """Raise BundleError unless these models, by role, answer the golden queries in a file's
    `content` as they did where the bundle was made."""
    try:
        cases = _FILE.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BundleError(f"is damaged or holds no golden queries: {error}") from error
    for role in cases.keys() & models.keys():
        inputs, outputs = cases[role]
        try:
            # One by one, as they were made: a dynamically quantised model's scales are of a batch.
            each = [models[role](take(inputs, slice(i, i + 1))) for i in range(rows_in(inputs))]
        except Exception as error:  # ONNX Runtime's errors share no base class but this
            raise BundleError(f"holds a query that the {role} model cannot run") from error
        found = {name: np.concatenate([run[name] for run in each]) for name in each[0]}
        for name, stored in outputs.items():
            if name not in found or not is_near(found[name], stored, TOLERANCE):
                raise BundleError(
                    f"shows that the {role} model's {name!r} is not the one it gave where the "
                    "bundle was made: this machine's processor or ONNX Runtime computes "
                    "differently, so the calibration does not hold here; make the stand-in again "
                    "on this kind of machine (parm protect)"
                )


def is_near(found: Array, expected: Array, tolerance: float) -> bool:
    """Return whether two outputs differ by at most `tolerance` times the largest value, or are the
    same to the bit, including values that are not finite."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.dtype.hasobject:
        return np.array_equal(found, expected)
    if found.tobytes() == expected.tobytes():
        return True
    expected = expected.astype(np.float64)
    off = np.abs(found.astype(np.float64) - expected).max(initial=0.0)
    return bool(off <= tolerance * np.abs(expected).max(initial=0.0))
