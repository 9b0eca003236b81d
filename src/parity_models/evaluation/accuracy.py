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
from parity_models.codes.sets import some_sets
from parity_models.errors import DataError
from parity_models.evaluation.predictor import (
    BATCH,
    check_rows,
    deployed_predictor,
    finite,
    load,
    predictor,
)
from parity_models.models.bundle import Accuracy, Bundle
from parity_models.models.gate import StandIn
from parity_models.roles import BACKUPS
from parity_models.tasks.metrics import agreement, score

FRACTIONS = (0.01, 0.05, 0.1, 0.2)
"""Shares of predictions unavailable for which A_o is given."""

Array = NDArray[Any]
Progress = Callable[[int, int], None]
"""Told how many more rows have been through a model, and how many there will be in all."""


def evaluate(
    bundle: Bundle,
    inputs: Array,
    labels: Array,
    *,
    metric: str = "top-1",
    seed: int = 0,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> Accuracy:
    """Measure the accuracies of `bundle` on queries (n, *query shape) and labels (n, ...).

    The queries are drawn at random, by `seed`, into groups of k; the last group is filled up
    with queries of the first, which count only there. Every member of every group is taken as
    unavailable in turn, with all its group's other predictions and all r parity outputs there;
    for r > 1 also every set of 2 to r members or, where these are very many, some drawn by `seed`.
    Each backup is judged on every query. Models run over `batch` rows at a time, on all cores.
    Raises DataError for arrays that do not fit the bundle, and models whose outputs are not finite.
    """
    code = bundle.code()
    _check(bundle, inputs, labels, least=1 if code is None else code.k)
    total = len(inputs)
    if code is not None:
        total += code.r * ceil(len(inputs) / code.k)
    total += len(inputs) * len(bundle.manifest.backups)

    def tell(rows: int) -> None:
        if progress is not None:
            progress(rows, total)

    predictions = deployed_predictor(bundle, batch=batch, tell=tell)(inputs)
    available = score(metric, predictions, labels)
    pinned = map(bundle.pinned, bundle.manifest.backups)
    imitated = (predictor(each, batch=batch, tell=tell)(inputs) for each in pinned)
    backups = tuple(score(metric, each, labels) for each in imitated)
    if code is None:
        return Accuracy(
            metric, available, None, (), {}, None, len(inputs), backup_accuracies=backups
        )

    groups = draw_groups(len(inputs), code.k, seed)
    parity_outputs = run_parities(bundle, code, inputs, groups, batch, tell)
    erased = [
        _reconstruct(code, predictions, parity_outputs, groups, len(inputs), sets)
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
        queries=len(inputs),
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


def _check(bundle: Bundle, inputs: Array, labels: Array, least: int) -> None:
    if len(inputs):
        check_rows(bundle, inputs)
    if len(labels) != len(inputs):
        raise DataError(f"there are {len(inputs)} inputs but {len(labels)} labels")
    if len(inputs) < least:
        raise DataError(f"there are {len(inputs)} inputs; this needs {least} at least")


def worthless(accuracy: Accuracy, least: float) -> tuple[StandIn, ...]:
    """The stand-ins that score no better than the same prediction for every query: `least`.

    None where that is perfect, so that nothing could score better.
    """
    scores: dict[StandIn, float | None] = {"reconstruction": accuracy.degraded_accuracy}
    scores |= dict(zip(BACKUPS, accuracy.backup_accuracies, strict=False))
    return tuple(
        stand_in for stand_in, score in scores.items() if score is not None and score <= least < 1
    )


def draw_groups(rows: int, k: int, seed: int) -> Array:
    """Rows of the inputs (groups, k), each at least once, repeated only to fill the last."""
    order = np.random.default_rng(seed).permutation(rows)
    return np.resize(order, (ceil(rows / k), k))


def _sets_lost(code: Code, seed: int) -> Iterator[list[tuple[int, ...]]]:
    """The sets of 1, 2, .. r members that are unavailable; each member at least once by itself."""
    yield [(slot,) for slot in range(code.k)]
    for number in range(2, code.r + 1):
        yield some_sets(code.k, number, seed)


def run_parities(
    bundle: Bundle,
    code: Code,
    inputs: Array,
    groups: Array,
    batch: int,
    tell: Callable[[int], None],
) -> list[Array]:
    """What the r parity models say of every group: (groups, *parity output shape) each."""
    models = [load(bundle.pinned(model)) for model in bundle.manifest.parity]
    parts: list[list[Array]] = [[] for _ in models]
    for start in range(0, len(groups), batch):
        members = groups[start : start + batch]
        parities = code.encode([inputs[members[:, slot]] for slot in range(code.k)])
        for model, path, parity, outputs in zip(
            models, bundle.parity_paths, parities, parts, strict=True
        ):
            outputs.append(finite(model(parity), path))
            tell(len(parity))
    return [np.concatenate(outputs) for outputs in parts]


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
