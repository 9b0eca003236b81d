"""Coverage and agreement of gates on queries that they were not calibrated on."""

import msgspec
import numpy as np

from parity_models.errors import DataError
from parity_models.evaluation.accuracy import Array, Progress
from parity_models.evaluation.predictor import (
    Inputs,
    answers_of,
    deployed_predictor,
    queries_of,
    rows_to_run,
)
from parity_models.models.bundle import Bundle
from parity_models.models.gate import Gate, StandIn
from parity_models.models.queries import rows_in
from parity_models.tasks.agreeing import Agreement
from parity_models.tasks.metrics import score


class GateResult(msgspec.Struct, frozen=True):
    """A stand-in with the gate of a level, or, where that is None, without one.

    `coverage` is the share of queries that it answers; of those answers `agreement` is the share
    that agree with F, `accuracy` their score by the metric, and `deployed_accuracy` F's for the
    same queries. The latter are None where there are too few answers.
    """

    stand_in: StandIn
    level: float | None
    coverage: float
    agreement: float | None
    accuracy: float | None
    deployed_accuracy: float | None


def evaluate_gates(
    bundle: Bundle,
    inputs: Inputs,
    labels: Array,
    *,
    metric: str = "top-1",
    seed: int = 0,
    progress: Progress | None = None,
) -> list[GateResult]:
    """Each calibrated stand-in of `bundle` without a gate and with that of each of its levels.

    `inputs` and `labels` are as for `evaluate`; every query is
    reconstructed, in groups drawn by `seed`. Empty if nothing is calibrated.
    """
    if not bundle.manifest.calibration:
        return []
    queries = queries_of(bundle, inputs)
    total = rows_in(queries) + rows_to_run(bundle, rows_in(queries))

    def on_rows(rows: int) -> None:
        if progress is not None:
            progress(rows, total)

    predictions = deployed_predictor(bundle, on_rows=on_rows)(queries)
    answers = answers_of(bundle, queries, predictions, seed=seed, on_rows=on_rows)
    results = []
    for stand_in, calibration in bundle.manifest.calibration.items():
        if stand_in not in answers:
            continue
        found = answers[stand_in]
        agreed = Agreement(calibration.kind, calibration.tolerance)(
            found.outputs, predictions[found.rows]
        )
        for level in (None, *calibration.levels):
            given = np.ones(len(agreed), np.bool_)
            if level is not None:
                given = ~Gate(calibration.confidence, level).refused(found.outputs)
            rows = found.rows[given]
            results.append(
                GateResult(
                    stand_in,
                    None if level is None else level.level,
                    float(given.mean()),
                    float(agreed[given].mean()) if given.any() else None,
                    _score(metric, found.outputs[given], labels[rows]),
                    _score(metric, predictions[rows], labels[rows]),
                )
            )
    return results


def _score(metric: str, outputs: Array, labels: Array) -> float | None:
    try:
        return score(metric, outputs, labels) if len(labels) else None
    except DataError:  # too few for the metric to have a meaning
        return None
