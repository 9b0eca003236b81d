"""What else could answer an unavailable prediction, on the same queries: the baselines.

Every approach is judged by the same four things: accuracy while all is available, accuracy of
the answers to queries whose own prediction is unavailable, what it costs in work, and what its
encoding and decoding cost in time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import NestedRegressionCode, TrainingFreeCode
from parity_models.errors import DataError
from parity_models.evaluation.accuracy import FRACTIONS, draw_groups
from parity_models.tasks.metrics import score

Array = NDArray[Any]
Run = Callable[[Array], Array]
"""The deployed model F: (n, *query shape) to (n, *output shape)."""

SMOOTHNESS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
"""The smoothing that is tried for splines, in either direction."""

MOST_SETS = 64
"""Sets of unavailable outputs that are tried at most, for each number of them."""


@dataclass(frozen=True)
class Approach:
    """How one approach fares. Accuracies are values of the metric.

    `overhead` is work beyond one run of F per query, in runs of F. `degraded` are the accuracies
    of answers to queries whose own prediction is unavailable, with 1, 2, .. of a group's
    outputs unavailable; `available` of all answers with none. `overall` is accuracy by the
    fraction of outputs that is unavailable. `encode_us` and `decode_us` are per group, in
    microseconds; None where nothing is coded.
    """

    name: str
    overhead: float
    available: float
    degraded: tuple[float, ...]
    overall: dict[str, float]
    encode_us: float | None = None
    decode_us: float | None = None


def plain_approach(name: str, overhead: float, available: float, degraded: float) -> Approach:
    """An approach that answers a query by itself: replication, a backup, a parity model.

    Whatever answers in place of an unavailable prediction has accuracy `degraded`.
    """
    overall = {str(f): (1 - f) * available + f * degraded for f in FRACTIONS}
    return Approach(name, overhead, available, (degraded,), overall)


def evaluate_default(
    predictions: Array, labels: Array, reference: Array, metric: str = "top-1"
) -> Approach:
    """One answer for every unavailable prediction (Crankshaw et al., Clipper, NSDI 2017).

    The answer is the mean of the predictions `reference` (m, *output shape), those of any
    typical queries. `predictions` (n, *output shape) are F's for the queries with `labels`.
    """
    default = np.broadcast_to(reference.mean(axis=0), predictions.shape)
    return plain_approach(
        "default prediction",
        0.0,
        score(metric, predictions, labels),
        score(metric, default, labels),
    )


def evaluate_training_free(
    run: Run,
    code: TrainingFreeCode,
    inputs: Array,
    labels: Array,
    *,
    metric: str = "top-1",
    stragglers: int | None = None,
    batch: int = 256,
    seed: int = 0,
) -> Approach:
    """Measure a code that runs coded queries on F itself: `run`.

    The queries `inputs` (n, *query shape) are drawn by `seed` into groups, of which only full
    ones count. All sets of up to `stragglers` (by default the code's r) of a group's outputs
    are taken as unavailable in turn, or, where these are very many, some drawn by `seed`. An
    answer counts as degraded if it is not a prediction of F for the query itself. Raises
    DataError for inputs that are fewer than k, or not as many as labels.
    """
    groups = _groups(code.k, inputs, labels, seed)
    outputs, encode_us = _run_coded(run, code, inputs, groups, batch)
    decode_times: list[float] = []

    def accuracy(lost: Sequence[int]) -> list[float]:
        started = perf_counter()
        answers = code.decode([None if i in lost else one for i, one in enumerate(outputs)])
        decode_times.append((perf_counter() - started) / len(groups))
        return [
            score(metric, answer, labels[groups[:, slot]])
            for slot, answer in enumerate(answers)
            if not lost or not code.systematic or slot in lost
        ]

    available = float(np.mean(accuracy(())))
    degraded = [
        float(np.mean([one for lost in _sets(code.coded, number, seed) for one in accuracy(lost)]))
        for number in range(1, (code.r if stragglers is None else stragglers) + 1)
    ]
    return Approach(
        code.name,
        code.overhead,
        available,
        tuple(degraded),
        _overall(code, available, degraded),
        encode_us,
        1e6 * median(decode_times),
    )


def fit_nested_regression(
    run: Run,
    k: int,
    r: int,
    inputs: Array,
    labels: Array,
    *,
    metric: str = "top-1",
    seed: int = 0,
) -> NestedRegressionCode:
    """The code of nested regression whose smoothing suits F best, by validation data.

    Best is what gives the best answers when any r outputs of a group are unavailable. Raises
    DataError for inputs that are fewer than k, or not as many as labels.
    """
    groups = _groups(k, inputs, labels, seed)
    tried: list[tuple[float, NestedRegressionCode]] = []
    for smooth_in in SMOOTHNESS:
        encoder = NestedRegressionCode(k, r, smooth_in)
        outputs, _ = _run_coded(run, encoder, inputs, groups, batch=256)
        for smooth_out in SMOOTHNESS:
            code = NestedRegressionCode(k, r, smooth_in, smooth_out)
            scores = [
                score(metric, answer, labels[groups[:, slot]])
                for lost in _sets(code.coded, r, seed)
                for slot, answer in enumerate(
                    code.decode([None if i in lost else one for i, one in enumerate(outputs)])
                )
            ]
            tried.append((float(np.mean(scores)), code))
    return max(tried, key=lambda pair: pair[0])[1]


def _groups(k: int, inputs: Array, labels: Array, seed: int) -> Array:
    """Rows of the inputs in full groups: (groups, k)."""
    if len(inputs) != len(labels):
        raise DataError(f"there are {len(inputs)} inputs but {len(labels)} labels")
    if len(inputs) < k:
        raise DataError(f"there are {len(inputs)} inputs; this needs {k} at least")
    return draw_groups(len(inputs), k, seed)[: len(inputs) // k]


def _run_coded(
    run: Run, code: TrainingFreeCode, inputs: Array, groups: Array, batch: int
) -> tuple[list[Array], float]:
    """F's outputs (groups, *output shape) for each coded query; microseconds to encode a group."""
    times: list[float] = []
    outputs: list[list[Array]] = [[] for _ in range(code.coded)]
    for start in range(0, len(groups), batch):
        members = groups[start : start + batch]
        queries = [inputs[rows] for rows in members.T]
        started = perf_counter()
        coded = code.encode(queries)
        times.append((perf_counter() - started) / len(members))
        for queries, parts in zip(coded, outputs, strict=True):
            parts.append(run(queries))
    return [np.concatenate(parts) for parts in outputs], 1e6 * median(times)


def _sets(of: int, number: int, seed: int) -> list[tuple[int, ...]]:
    """All sets of `number` outputs, or, where these are very many, some drawn by `seed`."""
    if comb(of, number) <= MOST_SETS:
        return list(combinations(range(of), number))
    random = np.random.default_rng(seed)
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < MOST_SETS:
        drawn.add(tuple(sorted(random.choice(of, number, replace=False).tolist())))
    return sorted(drawn)


def _overall(
    code: TrainingFreeCode, available: float, degraded: Sequence[float]
) -> dict[str, float]:
    """Accuracy by the fraction f of outputs unavailable.

    The answer to a query suffers if its own output is unavailable, in a code that has it among
    the coded ones, and otherwise if any of its group's outputs is.
    """
    if not degraded:
        return {}
    outputs = 1 if code.systematic else code.coded
    suffer = {f: 1 - (1 - f) ** outputs for f in FRACTIONS}
    return {str(f): (1 - s) * available + s * degraded[0] for f, s in suffer.items()}
