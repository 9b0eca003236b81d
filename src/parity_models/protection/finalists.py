"""The finalists of a search, measured: times in ONNX Runtime, agreement, and gates."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import CodeSpec
from parity_models.evaluation.accuracy import Interval, score_interval
from parity_models.evaluation.calibration import LEVELS, calibrate_gates
from parity_models.evaluation.judging import judged_shape
from parity_models.evaluation.outputs import Outputs, deployed_predictor
from parity_models.models.bundle import Bundle, write_bundle
from parity_models.models.gate import Calibration, StandIn
from parity_models.models.inference_time import inference_times
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.queries import commonest
from parity_models.models.signature import Sizes
from parity_models.tasks.metrics import labels_from, score
from parity_models.training.candidates import Candidate, Exported, saving
from parity_models.training.teacher import Queries


@dataclass(frozen=True)
class Finalist:
    """The measurements of a trained candidate: parity models of a `code`, or a backup.

    `ms` are milliseconds of a run by batch size, `share` those of the smallest as a share of the
    model's. `agreement` is the score with the deployed model's predictions as labels, on queries
    that no candidate was fitted to, and `interval` that score's; `accuracy` is against labels,
    where there are any. `covered` is the share of queries that the gate of the wanted level lets it
    answer; 0 where that level was not shown.
    """

    name: str
    code: CodeSpec | None
    ms: dict[int, float]
    share: float
    agreement: float
    interval: Interval | None
    accuracy: float | None
    covered: float

    @property
    def saving(self) -> float:
        """The mean time that a late query saves over a copy, in runs of the model."""
        return saving(self.covered, self.share)


class Trained(NamedTuple):
    """A candidate to be written: its models, and its gate, if it could be calibrated."""

    candidate: Candidate
    exported: Exported
    gate: Calibration | None


@dataclass(frozen=True)
class Measured:
    """The deployed model's predictions for queries that no stand-in was fitted to.

    Those for calibration are for gates, those for tests for the report, with labels if there are
    any, of the `metric`. Most queries have these `sizes` along the model's dynamic axes.
    """

    queries: Queries
    calibration: NDArray[Any]
    test: NDArray[Any]
    metric: str
    sizes: Sizes

    @classmethod
    def by(cls, bundle: Bundle, queries: Queries, metric: str) -> "Measured":
        """Predict with the deployed model of `bundle`."""
        assert queries.test is not None
        run = deployed_predictor(bundle)
        calibration = np.empty((0, *judged_shape(bundle)), np.float32)
        if queries.calibration is not None and len(queries.calibration):
            calibration = run(queries.calibration)
        sizes = commonest(queries.test, bundle.manifest.deployed.signature)
        return cls(queries, calibration, run(queries.test), metric, sizes)

    @property
    def accuracy(self) -> float | None:
        """The deployed model's own."""
        labels = self.queries.test_labels
        return None if labels is None else score(self.metric, self.test, labels)


def measure(
    candidates: Sequence[Candidate],
    deployed: Bundle,
    measured: Measured,
    level: float,
    batches: Sequence[int],
    folder: Path,
) -> tuple[dict[int, float], list[tuple[Finalist, Trained]]]:
    """Measure trained candidates against the deployed model.

    Args:
        candidates: The candidates.
        deployed: A bundle with the deployed model.
        measured: The model's predictions.
        level: The agreement that gates are to keep.
        batches: Batch sizes, all of which are timed side by side.
        folder: A folder for bundles that are needed meanwhile.

    Returns:
        The milliseconds of the deployed model by batch size, and each candidate's measurements.
    """
    exported = [each.exported() for each in candidates]
    own = deployed.stored(deployed.manifest.deployed)
    models = [
        OnnxModel(each.onnx, signature=each.signature)
        for each in (own, *(one.first for one in exported))
    ]
    taken = {batch: inference_times(models, batch, measured.sizes) for batch in batches}
    base, *times = [
        {batch: ms[place] for batch, ms in taken.items()} for place in range(len(models))
    ]
    least = min(batches)
    finalists = []
    for place, (candidate, made, ms) in enumerate(zip(candidates, exported, times, strict=True)):
        bundle = write_bundle(
            folder / str(place),
            deployed=own,
            parity=made.parity,
            coders=made.coders,
            backups=[] if made.backup is None or made.parity else [made.backup],
            code=candidate.proposal.code,
            imitated=deployed.manifest.imitated,
        )
        share = ms[least] / base[least]
        finalists.append(_judge(candidate, made, bundle, measured, level, ms, share))
    return base, finalists


def _judge(
    candidate: Candidate,
    exported: Exported,
    bundle: Bundle,
    measured: Measured,
    level: float,
    ms: dict[int, float],
    share: float,
) -> tuple[Finalist, Trained]:
    queries, metric = measured.queries, measured.metric
    stand_in: StandIn = "reconstruction" if exported.parity else "backup"
    gate = reached = None
    if queries.calibration is not None and len(queries.calibration):
        outputs = Outputs(bundle, queries.calibration, predictions=measured.calibration)
        gates = calibrate_gates(outputs, metric=metric, levels={*LEVELS, level})
        if (gate := gates.get(stand_in)) is not None:
            reached = gate.at_least(level)
    assert queries.test is not None
    answers = Outputs(bundle, queries.test, predictions=measured.test).answers()[stand_in]
    right = labels_from(measured.test[answers.rows], metric)
    accuracy = None
    if queries.test_labels is not None:
        accuracy = score(metric, answers.outputs, queries.test_labels[answers.rows])
    finalist = Finalist(
        candidate.name,
        candidate.proposal.code,
        ms,
        share,
        score(metric, answers.outputs, right),
        score_interval(metric, answers.outputs, right),
        accuracy,
        0.0 if reached is None else reached.coverage,
    )
    return finalist, Trained(candidate, exported, gate)
