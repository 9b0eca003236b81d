"""Outputs of a bundle's models, and answers of its stand-ins, for any number of queries."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parity_models.codes import Code
from parity_models.errors import DataError, UserError
from parity_models.models.bundle import Bundle
from parity_models.models.gate import StandIn
from parity_models.models.onnx_model import OnnxModel, PinnedModel
from parity_models.models.queries import (
    Batch,
    Named,
    as_batch,
    renamed,
    rows_in,
    run_by_bucket,
    take,
)

Array = NDArray[Any]
Mask = NDArray[np.bool_]
OnRows = Callable[[int], None]
"""Called with the number of rows that have been through a model."""

Inputs = ArrayLike | Batch
"""Queries of a bundle: an array (n, ...) for each input, or that of the only input."""

Run = Callable[[Inputs], Array]
"""A model: n queries to one output (n, *output_shape)."""

BATCH = 256
"""Rows that a model runs over at a time: more would gain nothing and take more memory."""


def queries_of(bundle: Bundle, inputs: Inputs) -> Named:
    """Return the queries of a bundle's deployed model. Raises DataError for those that are not, and
    for none."""
    queries = as_batch(inputs, bundle.manifest.deployed.signature)
    if not rows_in(queries):
        raise DataError("there are 0 inputs, too few")
    return queries


def predictor(
    model: Path | PinnedModel,
    *,
    batch: int = BATCH,
    on_rows: OnRows | None = None,
    output: str | None = None,
) -> Run:
    """Return a function that runs a model over `batch` queries at a time, on all cores.

    Of several outputs it gives the one called `output`. Queries of dynamic shape are run in their
    own buckets. The function raises DataError for queries that the model cannot run, and for
    outputs that are not finite.
    """
    path = model if isinstance(model, Path) else model.path
    loaded = _load(model)
    chosen = loaded.signature.outputs[0].name if output is None else output

    def checked(queries: Batch) -> Named:
        return {chosen: finite(loaded.predict(queries)[chosen], path)}

    def run(queries: Inputs) -> Array:
        named = queries if isinstance(queries, Mapping) else as_batch(queries, loaded.signature)
        named = renamed(named, loaded.signature)
        return run_by_bucket(checked, named, loaded.signature, chosen, batch, on_rows)

    return run


def deployed_predictor(bundle: Bundle, *, batch: int = BATCH, on_rows: OnRows | None = None) -> Run:
    """Return the deployed model of `bundle` as `predictor` does: of several outputs the one that
    stand-ins imitate.

    Raises UserError where the bundle does not say which that is.
    """
    manifest = bundle.manifest
    outputs = manifest.deployed.signature.outputs
    if len(outputs) > 1 and manifest.imitated is None:
        raise UserError(
            f"{bundle.path} has a model with several outputs "
            f"({', '.join(each.name for each in outputs)}) and no stand-in for any, so that "
            "there is nothing to judge"
        )
    name = manifest.imitated if len(outputs) > 1 else None
    return predictor(bundle.pinned(manifest.deployed), batch=batch, on_rows=on_rows, output=name)


def finite(outputs: Array, path: Path) -> Array:
    """Return the outputs of the model at `path`. Raises DataError if some are NaN or infinite."""
    if outputs.dtype.kind == "f" and not np.isfinite(outputs).all():
        raise DataError(
            f"{path.name} gives NaN or infinite values for some of the queries; leave those out, "
            "or check that they are scaled as the model expects them"
        )
    return outputs


def _load(model: Path | PinnedModel) -> OnnxModel:
    threads = os.cpu_count() or 1
    if isinstance(model, Path):
        return OnnxModel(model, threads=threads)
    return OnnxModel(model.read(), signature=model.signature, threads=threads)


# Groups


def draw_groups(rows: int, k: int, seed: int) -> Array:
    """Return rows of the queries (groups, k), each at least once, repeated only to fill the last
    group."""
    order = np.random.default_rng(seed).permutation(rows)
    return np.resize(order, (ceil(rows / k), k))


def run_parities(
    bundle: Bundle, code: Code, queries: Batch, groups: Array, batch: int, on_rows: OnRows
) -> list[Array]:
    """Return the outputs of the r parity models for every group: (groups, *parity output shape)
    each."""
    models = [_load(bundle.pinned(model)) for model in bundle.manifest.parity]
    parts: list[list[Array]] = [[] for _ in models]
    for start in range(0, len(groups), batch):
        members = groups[start : start + batch]
        parities = code.encode([take(queries, members[:, slot]) for slot in range(code.k)])
        for model, path, parity, outputs in zip(
            models, bundle.parity_paths, parities, parts, strict=True
        ):
            (output,) = model(renamed(parity, model.signature)).values()
            outputs.append(finite(output, path))
            on_rows(len(output))
    return [np.concatenate(outputs) for outputs in parts]


# Stand-ins


@dataclass(frozen=True)
class StandInAnswers:
    """Outputs (m, *output shape) of a stand-in, and the rows of the queries that they answer."""

    outputs: Array
    rows: NDArray[np.int64]


def rows_to_run(bundle: Bundle, rows: int) -> int:
    """Return the number of rows that stand-ins run for `rows` queries."""
    code = bundle.manifest.code
    of_parities = 0 if code is None else code.r * -(-rows // code.k)
    return of_parities + rows * len(bundle.manifest.backups)


def answers_of(
    bundle: Bundle,
    inputs: Inputs,
    predictions: Array,
    *,
    seed: int = 0,
    independent: bool = False,
    on_rows: OnRows | None = None,
) -> dict[StandIn, StandInAnswers]:
    """Return the answers of each stand-in of `bundle` to n queries, as serving would give them.

    `predictions` (n, *output shape) are F's. Groups are drawn by `seed`. Every query is
    reconstructed once, as soon as it can be: with 1 to r of its group unavailable, and no more
    parity outputs than that takes. Where answers are to be `independent` of each other, one of a
    group is reconstructed, unless the slots of the code are isolated. A backup answers every query.
    """
    queries = queries_of(bundle, inputs)
    found: dict[StandIn, StandInAnswers] = {}
    code = bundle.code()
    if code is not None and rows_in(queries) >= code.k:
        alone = independent and not bundle.isolated
        found["reconstruction"] = _reconstruct(
            bundle, code, queries, predictions, seed, alone, on_rows or _nobody
        )
    for role, backup in bundle.manifest.backup_roles.items():
        outputs = predictor(bundle.pinned(backup), on_rows=on_rows)(queries)
        found[role] = StandInAnswers(outputs, np.arange(rows_in(queries)))
    return found


def _nobody(rows: int) -> None:
    pass


def _reconstruct(
    bundle: Bundle,
    code: Code,
    queries: Batch,
    predictions: Array,
    seed: int,
    alone: bool,
    on_rows: OnRows,
) -> StandInAnswers:
    groups = draw_groups(rows_in(queries), code.k, seed)
    # The last group is filled up with queries of the first, which count only there.
    counted = np.arange(groups.size).reshape(groups.shape) < rows_in(queries)
    if alone:
        full = counted.all(axis=1)
        groups, counted = groups[full], counted[full]
    parity_outputs = run_parities(bundle, code, queries, groups, BATCH, on_rows)
    rng = np.random.default_rng(seed)
    chosen = rng.integers(code.k, size=len(groups))
    outputs, rows = [], []
    for slot in range(code.k):
        (here,) = np.nonzero((chosen == slot) & counted[:, slot] if alone else counted[:, slot])
        for members, lost, parities in _cases(code, slot, here, rng):
            decoded = code.decode(
                [None if lost[i] else predictions[groups[members, i]] for i in range(code.k)],
                [
                    output[members] if is_here else None
                    for output, is_here in zip(parity_outputs, parities, strict=True)
                ],
            )
            outputs.append(decoded[slot])
            rows.append(groups[members, slot])
    return StandInAnswers(np.concatenate(outputs), np.concatenate(rows))


def _cases(
    code: Code, slot: int, groups: NDArray[np.int64], rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], Mask, Mask]]:
    """The cases in which `slot` is unavailable, drawn for each of `groups`: the groups, the slots
    that are unavailable (k,) and the parity outputs that are here (r,)."""
    if not len(groups):
        return
    unavailable = rng.integers(1, code.r + 1, size=len(groups))
    order = rng.random((len(groups), code.k))
    order[:, slot] = -1.0
    lost = order.argsort(axis=1).argsort(axis=1) < unavailable[:, np.newaxis]
    first = rng.random((len(groups), code.r)).argsort(axis=1).argsort(axis=1)
    cases: dict[tuple[Any, ...], list[int]] = {}
    for group, is_lost, rank in zip(groups.tolist(), lost, first, strict=True):
        needed = next(
            number
            for number in range(1, code.r + 1)
            if code.decodable(tuple((~is_lost).tolist()), tuple((rank < number).tolist()))[slot]
        )
        key = (tuple(is_lost.tolist()), tuple((rank < needed).tolist()))
        cases.setdefault(key, []).append(group)
    for (is_lost, is_here), members in cases.items():
        yield np.array(members), np.array(is_lost), np.array(is_here)
