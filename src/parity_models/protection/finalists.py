"""What the search found, measured: times in ONNX Runtime, agreement, and the gate's coverage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import CodeSpec
from parity_models.evaluation.calibration import LEVELS, calibrate_answers
from parity_models.evaluation.interval import Interval, score_interval
from parity_models.evaluation.judged_queries import judged_shape
from parity_models.evaluation.predictor import answers_of, deployed_predictor
from parity_models.models.bundle import Bundle, NewModel, write_bundle
from parity_models.models.gate import Calibration, StandIn
from parity_models.models.inference_time import inference_times
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.queries import commonest
from parity_models.models.signature import Sizes
from parity_models.tasks.agreeing import agreement_for
from parity_models.tasks.metrics import score
from parity_models.tasks.unlabelled import labels_from
from parity_models.training.candidates import Candidate
from parity_models.training.parity import ParityModels
from parity_models.training.trainee import Trainee


@dataclass(frozen=True)
class Entry:
    """A trained candidate as it is exported, to be measured."""

    candidate: Candidate
    made: NewModel | ParityModels
    trainee: Trainee


@dataclass(frozen=True)
class Finalist:
    """A trained candidate, measured.

    `ms` are milliseconds of a run by batch size, `slot_ms` those of its backup by itself if it is a
    parity model that has one. `agreement` is its score with the deployed model's predictions as
    labels, on queries that none was fitted to, and `interval` that score's; `accuracy` is
    against labels, where there are any. `coverage` is the share of those queries that the gate of
    the wanted level lets it answer, and lets its backup by itself; 0 where that level was not
    shown.
    """

    candidate: Candidate
    made: NewModel | ParityModels
    trainee: Trainee
    ms: dict[int, float]
    slot_ms: dict[int, float] | None
    share: float
    agreement: float
    interval: Interval | None
    accuracy: float | None
    coverage: dict[StandIn, float]
    calibration: dict[StandIn, Calibration]

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def stand_in(self) -> StandIn:
        """What its answers' source is."""
        return "backup" if self.candidate.code is None else "reconstruction"

    @property
    def covered(self) -> float:
        """The share of queries that it may answer."""
        return self.coverage.get(self.stand_in, 0.0)

    @property
    def slot(self) -> NewModel | None:
        """Its backup by itself, if it is a parity model that has one which may answer."""
        made = self.made
        return made.slot if isinstance(made, ParityModels) and self.coverage.get("backup") else None


@dataclass(frozen=True)
class Measured:
    """Queries that no stand-in was fitted to, and the deployed model's predictions for them.

    Those of `calibration` are for gates, those of `test` for the report, with `labels` if there
    are any, of the `metric`. Most queries have these `sizes` along the model's dynamic axes.
    """

    calibration: NDArray[Any]
    calibration_predictions: NDArray[np.float32]
    test: NDArray[Any]
    test_predictions: NDArray[np.float32]
    labels: NDArray[np.float32] | NDArray[np.int64] | None
    metric: str
    sizes: Sizes

    @classmethod
    def by(
        cls,
        bundle: Bundle,
        calibration: NDArray[Any],
        test: NDArray[Any],
        labels: NDArray[np.float32] | NDArray[np.int64] | None,
        metric: str,
    ) -> "Measured":
        """With predictions by the deployed model of `bundle`."""
        run = deployed_predictor(bundle)
        none = np.empty((0, *judged_shape(bundle)), np.float32)
        of_calibration = run(calibration) if len(calibration) else none
        sizes = commonest(test, bundle.manifest.deployed.signature)
        return cls(calibration, of_calibration, test, run(test), labels, metric, sizes)

    @property
    def accuracy(self) -> float | None:
        """The deployed model's own."""
        if self.labels is None:
            return None
        return score(self.metric, self.test_predictions, self.labels)


def bundle_with(
    deployed: Bundle, made: NewModel | ParityModels, out: Path, code: CodeSpec | None
) -> Bundle:
    """A bundle for measuring with one stand-in; nothing else of `deployed` is in it."""
    model = deployed.stored(deployed.manifest.deployed)
    if isinstance(made, NewModel):
        return write_bundle(
            out, deployed=model, backups=[made], imitated=deployed.manifest.imitated
        )
    return write_bundle(
        out,
        deployed=model,
        parity=made.models,
        coders=made.coders,
        backups=[] if made.slot is None else [made.slot],
        code=code,
        imitated=deployed.manifest.imitated,
    )


def measure(
    entries: Sequence[Entry],
    deployed: Bundle,
    queries: Measured,
    level: float,
    batches: Sequence[int],
    folder: Path,
) -> tuple[dict[int, float], list[Finalist]]:
    """Milliseconds of the deployed model by batch size, and every entry, measured.

    All are timed side by side. `folder` is for bundles that are needed meanwhile.
    """
    made = [entry.made for entry in entries]
    first = [each if isinstance(each, NewModel) else each.models[0] for each in made]
    slots = [None if isinstance(each, NewModel) else each.slot for each in made]
    alone = [slot for slot in slots if slot is not None]
    own = deployed.stored(deployed.manifest.deployed)
    models = [OnnxModel(each.onnx, signature=each.signature) for each in (own, *first, *alone)]
    times = {batch: inference_times(models, batch, queries.sizes) for batch in batches}
    base = {batch: taken[0] for batch, taken in times.items()}
    least = min(batches)
    alone_at = iter(range(1 + len(first), len(models)))
    finalists = []
    for place, (entry, slot) in enumerate(zip(entries, slots, strict=True)):
        ms = _at(1 + place, times)
        bundle = bundle_with(deployed, entry.made, folder / str(place), entry.candidate.code)
        judged = _judge(entry, bundle, queries, level)
        finalists.append(
            replace(
                judged,
                ms=ms,
                share=ms[least] / base[least],
                slot_ms=None if slot is None else _at(next(alone_at), times),
            )
        )
    return base, finalists


def _at(place: int, times: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """The times of one model, by batch size."""
    return {batch: taken[place] for batch, taken in times.items()}


def _judge(entry: Entry, bundle: Bundle, queries: Measured, level: float) -> Finalist:
    """All but the times."""
    stand_in: StandIn = "backup" if entry.candidate.code is None else "reconstruction"
    metric = queries.metric
    calibration: dict[StandIn, Calibration] = {}
    if len(queries.calibration):
        agreed = agreement_for(metric, queries.calibration_predictions)
        found = answers_of(
            bundle, queries.calibration, queries.calibration_predictions, independent=True
        )
        calibration = {
            name: calibrate_answers(
                answers, queries.calibration_predictions[answers.rows], agreed, _levels(level)
            )
            for name, answers in found.items()
        }
    answers = answers_of(bundle, queries.test, queries.test_predictions)[stand_in]
    predictions = queries.test_predictions[answers.rows]
    right = labels_from(predictions, metric)
    accuracy = None
    if queries.labels is not None:
        accuracy = score(metric, answers.outputs, queries.labels[answers.rows])
    return Finalist(
        entry.candidate,
        entry.made,
        entry.trainee,
        {},
        None,
        0.0,
        score(metric, answers.outputs, right),
        score_interval(metric, answers.outputs, right),
        accuracy,
        {name: _covered(each, level) for name, each in calibration.items()},
        calibration,
    )


def _levels(level: float) -> tuple[float, ...]:
    return tuple(sorted({*LEVELS, level}))


def _covered(calibration: Calibration, level: float) -> float:
    """The share of queries that the gate of `level` lets through."""
    found = calibration.at_least(level)
    return 0.0 if found is None else found.coverage
