"""What else could answer an unavailable prediction, on the same queries: the baselines.

Every approach is judged by the same four things: accuracy while all is available, accuracy of
the answers to queries whose own prediction is unavailable, what it costs in work, and what its
encoding and decoding cost in time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Literal

import numpy as np

from parity_models.codes import Code
from parity_models.codes.weights import some_sets
from parity_models.errors import DataError
from parity_models.evaluation.accuracy import FRACTIONS
from parity_models.evaluation.outputs import BATCH, Array, draw_groups
from parity_models.models.bundle import Accuracy, Bundle
from parity_models.roles import Backup
from parity_models.tasks.metrics import score
from parity_models_lab.accuracy.training_free import NestedRegressionCode, TrainingFreeCode

Run = Callable[[Array], Array]
"""A model: (n, *query_shape) to (n, *output_shape)."""

SMOOTHNESS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
"""The smoothing that is tried for splines, in either direction."""

TIMED = 200
"""Groups that are encoded and decoded; times are medians, in microseconds."""

FITTED_TO = 1000
"""Queries that the smoothing is chosen by, at most."""


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


def parity_approach(
    name: str, overhead: float, accuracy: Accuracy, encode_us: float, decode_us: float
) -> Approach:
    """A code with its parity models, whose measured `accuracy` is not None anywhere."""
    return Approach(
        name,
        overhead,
        accuracy.available_accuracy,
        accuracy.degraded_by_unavailable,
        accuracy.overall,
        encode_us,
        decode_us,
    )


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
    seed: int = 0,
) -> Approach:
    """Measure a code that runs coded queries on F itself: `run`.

    The queries `inputs` (n, *query shape) are drawn by `seed` into groups, of which only full
    ones count. All sets of up to r of a group's outputs are taken as unavailable in turn, or,
    where these are very many, some drawn by `seed`. Raises DataError for inputs that are fewer
    than k, or not as many as labels.
    """
    groups = _groups(code.k, inputs, labels, seed)
    outputs = _run_coded(run, code, inputs, groups)

    right = labels[groups]
    available = _accuracy(code, outputs, right, [()], metric)
    degraded = [
        _accuracy(code, outputs, right, some_sets(code.coded, number, seed), metric)
        for number in range(1, code.r + 1)
    ]
    return Approach(
        code.name,
        code.overhead,
        available,
        tuple(degraded),
        _overall(code, available, degraded),
        *_free_coding_times(code, inputs, outputs),
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

    Best is what gives the best answers when any r outputs of a group are unavailable; a thousand
    queries say which. `inputs` are (n, *query_shape), `labels` (n, ...). Raises
    DataError for inputs that are fewer than k, or not as many as labels.
    """
    groups = _groups(k, inputs, labels, seed)[: max(1, FITTED_TO // k)]
    tried: list[tuple[float, NestedRegressionCode]] = []
    for smooth_in in SMOOTHNESS:
        encoder = NestedRegressionCode(k, r, smooth_in)
        outputs = _run_coded(run, encoder, inputs, groups)
        for smooth_out in SMOOTHNESS:
            code = NestedRegressionCode(k, r, smooth_in, smooth_out)
            sets = some_sets(code.coded, r, seed)
            tried.append((_accuracy(code, outputs, labels[groups], sets, metric), code))
    return max(tried, key=lambda pair: pair[0])[1]


def _groups(k: int, inputs: Array, labels: Array, seed: int) -> Array:
    """Rows of the inputs in full groups: (groups, k)."""
    if len(inputs) != len(labels):
        raise DataError(f"there are {len(inputs)} inputs but {len(labels)} labels")
    if len(inputs) < k:
        raise DataError(f"there are {len(inputs)} inputs; this needs {k} at least")
    return draw_groups(len(inputs), k, seed)[: len(inputs) // k]


def _run_coded(run: Run, code: TrainingFreeCode, inputs: Array, groups: Array) -> list[Array]:
    """F's outputs (groups, *output shape) for each coded query."""
    outputs: list[list[Array]] = [[] for _ in range(code.coded)]
    for start in range(0, len(groups), BATCH):
        members = groups[start : start + BATCH]
        coded = code.encode([inputs[rows] for rows in members.T])
        for queries, parts in zip(coded, outputs, strict=True):
            parts.append(run(queries))
    return [np.concatenate(parts) for parts in outputs]


def _accuracy(
    code: TrainingFreeCode,
    outputs: Sequence[Array],
    labels: Array,
    sets: Iterable[Sequence[int]],
    metric: str,
) -> float:
    """The score of answers that suffer where each of `sets` of outputs is unavailable in turn.

    Of all answers, for the empty set. `labels` are (groups, k, ...).
    """
    answers, right = [], []
    for lost in sets:
        here = [None if i in lost else output for i, output in enumerate(outputs)]
        for slot, answer in enumerate(code.decode(here)):
            answers.append(answer)
            right.append(labels[:, slot])
    return score(metric, np.concatenate(answers), np.concatenate(right))


def _overall(
    code: TrainingFreeCode, available: float, degraded: Sequence[float]
) -> dict[str, float]:
    """Accuracy by the fraction f of outputs unavailable: all answers of a group suffer alike."""
    if not degraded:
        return {}
    suffer = {f: 1 - (1 - f) ** code.coded for f in FRACTIONS}
    return {str(f): (1 - s) * available + s * degraded[0] for f, s in suffer.items()}


def coding_times(code: Code, inputs: Array) -> tuple[float, float]:
    """To encode k queries of `inputs` (n, *query_shape), and to decode one unavailable prediction
    of a group from all else that there is of it.
    """
    predictions = [None, *[np.ones((1, *code.output_shape), np.float32)] * (code.k - 1)]
    outputs = [np.ones((1, *code.parity_output_shape), np.float32)] * code.r
    decode = partial(code.decode, predictions, outputs)
    groups = np.resize(np.arange(len(inputs)), (TIMED, code.k))
    name = next(iter(code.query_shapes))
    encoding = _median_us(
        partial(code.encode, [{name: inputs[row : row + 1]} for row in group]) for group in groups
    )
    return encoding, _median_us([decode] * TIMED)


def _free_coding_times(
    code: TrainingFreeCode, inputs: Array, outputs: Sequence[Array]
) -> tuple[float, float]:
    """To encode k queries of `inputs` (n, *query_shape), and to decode all k predictions.

    `outputs` are F's for each coded query of some groups: n arrays (groups, *output_shape). One
    of each group is taken as unavailable, where the code allows that.
    """
    here: list[Array | None] = [output[:1] for output in outputs]
    if code.r > 0:
        here[0] = None
    return _encoding_time(code, inputs), _median_us([partial(code.decode, here)] * TIMED)


def _encoding_time(code: TrainingFreeCode, inputs: Array) -> float:
    groups = np.resize(np.arange(len(inputs)), (TIMED, code.k))
    return _median_us(
        partial(code.encode, [inputs[row : row + 1] for row in group]) for group in groups
    )


def _median_us(calls: Iterable[Callable[[], object]]) -> float:
    took = []
    for call in calls:
        began = perf_counter()
        call()
        took.append(perf_counter() - began)
    return 1e6 * median(took)


def relative_time(bundle: Bundle, role: Literal["parity", Backup]) -> float:
    """The inference time of the bundle's parity models or of a backup over the deployed model's.

    1 where it was not measured.
    """
    times = bundle.manifest.inference_times
    if times is None:
        return 1.0
    taken = times.parity if role == "parity" else times.of_backups.get(role)
    return 1.0 if taken is None else taken / times.deployed
