"""All approaches to unavailable predictions of one deployed model, on the same queries."""

import os
from collections.abc import Iterator
from time import perf_counter

import numpy as np

from parity_models.codes import BerrutCode, Code, LagrangeCode, LinearCode
from parity_models.evaluation.accuracy import evaluate
from parity_models.evaluation.approaches import (
    Approach,
    Array,
    evaluate_default,
    evaluate_training_free,
    fit_nested_regression,
    plain_approach,
)
from parity_models.models.bundle import Bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.tasks.task import Split

BATCH = 256
"""Rows a model runs over at a time."""

FITTED_TO = 1000
"""Queries of the reference that are used, at most."""


def compare_approaches(
    bundle: Bundle,
    test: Split,
    reference: Split,
    *,
    k: int = 2,
    r: int = 1,
    degree: int = 2,
    metric: str = "top-1",
    seed: int = 0,
) -> Iterator[Approach]:
    """Judge, one after the other, what can answer for the bundle's deployed model F.

    The bundle's own code and backup, where it has them; a copy of every query; a default
    prediction; and, for groups of k with up to r unavailable, the codes without parity models:
    linear, Lagrange as if F were a polynomial of `degree`, Berrut, nested regression.
    `reference` holds typical queries, to fit the latter and the default to. Raises CodeError
    for k and r that cannot be, DataError for arrays that do not fit.
    """
    fixed = (LinearCode(k, r), LagrangeCode(k, r, degree), BerrutCode(k, r))
    model = OnnxModel(bundle.deployed_path, threads=os.cpu_count() or 1)

    def run(inputs: Array) -> Array:
        parts = range(0, len(inputs), BATCH)
        return np.concatenate([model(inputs[start : start + BATCH]) for start in parts])

    reference = reference.take(np.arange(min(FITTED_TO, len(reference))))
    own = evaluate(bundle, test.inputs, test.labels, metric=metric, seed=seed)
    code, times = bundle.code(), bundle.manifest.inference_times
    if code is not None and own.degraded_accuracy is not None:
        cost = times.parity / times.deployed if times and times.parity else 1.0
        yield Approach(
            str(code.spec),
            cost * code.r / code.k,
            own.available_accuracy,
            own.degraded_by_unavailable,
            own.overall,
            *_code_times(code, test.inputs),
        )
    if own.backup_accuracy is not None:
        cost = times.backup / times.deployed if times and times.backup else 1.0
        yield plain_approach(
            "approximate backup", cost, own.available_accuracy, own.backup_accuracy
        )
    yield plain_approach("replication", 1.0, own.available_accuracy, own.available_accuracy)
    yield evaluate_default(run(test.inputs), test.labels, run(reference.inputs), metric)
    nested = fit_nested_regression(
        run, k, r, reference.inputs, reference.labels, metric=metric, seed=seed
    )
    for free in (*fixed, nested):
        yield evaluate_training_free(run, free, test.inputs, test.labels, metric=metric, seed=seed)


def _code_times(code: Code, inputs: Array) -> tuple[float, float]:
    """Microseconds to encode a group and to decode one, of those in a batch."""
    queries = [inputs[:BATCH]] * code.k
    predictions = [np.ones((len(queries[0]), *code.output_shape), np.float32)] * (code.k - 1)
    outputs = [np.ones((len(queries[0]), *code.parity_output_shape), np.float32)] * code.r
    took = []
    for call in (lambda: code.encode(queries), lambda: code.decode([None, *predictions], outputs)):
        call()
        started = perf_counter()
        call()
        took.append(1e6 * (perf_counter() - started) / len(queries[0]))
    encode, decode = took
    return encode, decode
