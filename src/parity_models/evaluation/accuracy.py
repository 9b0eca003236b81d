"""Accuracy under unavailability: A_a, A_d and A_o of a bundle on labelled queries.

(Kosaian et al., SOSP 2019, section 4, defines the three.)
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.codes.weights import some_sets
from parity_models.errors import DataError
from parity_models.evaluation.predictor import (
    BATCH,
    Inputs,
    deployed_predictor,
    draw_groups,
    predictor,
    queries_of,
    run_parities,
)
from parity_models.models.bundle import Accuracy, Bundle
from parity_models.models.gate import StandIn
from parity_models.models.queries import Batch, rows_in
from parity_models.roles import BACKUPS
from parity_models.tasks.metrics import agreement, score

FRACTIONS = (0.01, 0.05, 0.1, 0.2)
"""Shares of predictions unavailable for which A_o is given."""

Array = NDArray[Any]
Progress = Callable[[int, int], None]
"""Called with the number of rows that have been through a model, and with that of all rows."""


def evaluate(
    bundle: Bundle,
    inputs: Inputs,
    labels: Array,
    *,
    metric: str = "top-1",
    seed: int = 0,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Accuracy:
    """Measure the accuracies of `bundle` on n queries and labels (n, ...).

    The queries are drawn at random, by `seed`, into groups of k; the last group is filled up
    with queries of the first, which count only there. Every member of every group is taken as
    unavailable in turn, with all its group's other predictions and all r parity outputs there;
    for r > 1 also every set of 2 to r members or, where these are very many, some drawn by `seed`.
    Each backup is judged on every query. Models run over `batch` rows at a time, on all cores.
    Raises DataError for arrays that do not fit the bundle, and models whose outputs are not finite.
    """
    code, queries = bundle.code(), queries_of(bundle, inputs)
    _check(queries, labels, least=1 if code is None else code.k)
    rows = total = rows_in(queries)
    if code is not None:
        total += code.r * ceil(rows / code.k)
    total += rows * len(bundle.manifest.backups)

    def on_rows(rows: int) -> None:
        if progress is not None:
            progress(rows, total)

    predictions = deployed_predictor(bundle, batch=batch, on_rows=on_rows)(queries)
    available = score(metric, predictions, labels)
    pinned = map(bundle.pinned, bundle.manifest.backups)
    imitated = (predictor(each, batch=batch, on_rows=on_rows)(queries) for each in pinned)
    backups = tuple(score(metric, each, labels) for each in imitated)
    if code is None:
        return Accuracy(metric, available, None, (), {}, None, rows, backup_accuracies=backups)

    groups = draw_groups(rows, code.k, seed)
    parity_outputs = run_parities(bundle, code, queries, groups, batch, on_rows)
    erased = [
        _reconstruct(code, predictions, parity_outputs, groups, rows, sets)
        for sets in _sets_lost(code, seed)
    ]
    degraded = [score(metric, one.outputs, labels[one.rows]) for one in erased]
    alone = erased[0]
    return Accuracy(
        metric=metric,
        available_accuracy=available,
        degraded_accuracy=degraded[0],
        degraded_by_slot=_by_slot(code.k, alone, labels, metric),
        overall={str(f): (1 - f) * available + f * degraded[0] for f in FRACTIONS},
        agreement=agreement(metric, alone.outputs, predictions[alone.rows]),
        queries=rows,
        degraded_by_unavailable=tuple(degraded),
        backup_accuracies=backups,
    )


@dataclass(frozen=True)
class _Reconstructions:
    """Reconstructed outputs (m, *output shape), of which rows of the inputs, in which slots."""

    outputs: Array
    rows: Array
    slots: Array


def _by_slot(k: int, alone: _Reconstructions, labels: Array, metric: str) -> tuple[float, ...]:
    """A_d of each slot; none where one has too few queries for the metric to have a meaning."""
    here = [alone.slots == slot for slot in range(k)]
    try:
        return tuple(score(metric, alone.outputs[one], labels[alone.rows[one]]) for one in here)
    except DataError:
        return ()


def _check(queries: Batch, labels: Array, least: int) -> None:
    if len(labels) != rows_in(queries):
        raise DataError(f"there are {rows_in(queries)} inputs but {len(labels)} labels")
    if rows_in(queries) < least:
        raise DataError(f"there are {rows_in(queries)} inputs; this needs {least} at least")


def worthless(accuracy: Accuracy, least: float) -> tuple[StandIn, ...]:
    """Return the stand-ins that score no better than `least`, one prediction for every query.

    None where that is perfect, so that nothing could score better.
    """
    scores: dict[StandIn, float | None] = {"reconstruction": accuracy.degraded_accuracy}
    scores |= dict(zip(BACKUPS, accuracy.backup_accuracies, strict=False))
    return tuple(
        stand_in for stand_in, score in scores.items() if score is not None and score <= least < 1
    )


def _sets_lost(code: Code, seed: int) -> Iterator[list[tuple[int, ...]]]:
    """The sets of 1, 2, .. r members that are unavailable; each member at least once by itself."""
    yield [(slot,) for slot in range(code.k)]
    for number in range(2, code.r + 1):
        yield some_sets(code.k, number, seed)


def _reconstruct(
    code: Code,
    predictions: Array,
    parity_outputs: list[Array],
    groups: Array,
    rows: int,
    sets: Iterable[tuple[int, ...]],
) -> _Reconstructions:
    """Take each of `sets` of members of every group as unavailable in turn."""
    counted = np.arange(groups.size).reshape(groups.shape) < rows
    members = [predictions[groups[:, slot]] for slot in range(code.k)]
    outputs, origins, slots = [], [], []
    for lost in sets:
        here = [None if slot in lost else member for slot, member in enumerate(members)]
        for slot, output in code.decode(here, parity_outputs).items():
            keep = counted[:, slot]
            outputs.append(output[keep])
            origins.append(groups[keep, slot])
            slots.append(np.full(keep.sum(), slot))
    return _Reconstructions(*map(np.concatenate, (outputs, origins, slots)))
