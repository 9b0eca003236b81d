"""The finalists of a search, measured: times in ONNX Runtime, agreement, and gates."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import CodeSpec
from parity_models.evaluation.accuracy import Interval, score_interval
from parity_models.evaluation.calibration import LEVELS, calibrate_gates
from parity_models.evaluation.judging import judged_shape
from parity_models.evaluation.outputs import Outputs, deployed_predictor
from parity_models.models.bundle import Bundle, InferenceTimes, write_bundle
from parity_models.models.gate import Calibration, StandIn
from parity_models.models.inference_time import inference_times
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.queries import commonest
from parity_models.models.signature import Sizes
from parity_models.tasks.metrics import labels_from, score
from parity_models.training.candidates import (
    STACKED,
    Candidate,
    Exported,
    Proposal,
    code_for,
    saving,
)
from parity_models.training.proposals import SLACK
from parity_models.training.queries import Queries
from parity_models.training.teacher import Teacher

SLOTS = (2, 3, 4)
"""Queries in the groups of the codes that backups over named inputs are tried with."""


@dataclass(frozen=True)
class Entry:
    """A trained candidate as it is exported, to be measured."""

    proposal: Proposal
    exported: Exported
    candidate: Candidate


def in_slots(found: Sequence[Entry], teacher: Teacher) -> tuple[list[Entry], dict[str, str]]:
    """For each k, run the best fast enough backup `found` in each slot of a parity model.

    Such a model has nothing to learn. Fast enough is a backup of which k runs take no longer than
    the deployed model. Of models that take one float32 input, parity models are candidates of the
    search: there are none here. Returns the parity models, and by name why there is none.
    """
    entries: list[Entry] = []
    refused: dict[str, str] = {}
    backups = [each for each in found if each.proposal.code is None]
    for k in () if teacher.plain else SLOTS:
        spec = CodeSpec("stack", "separate", k, encoder_options=STACKED)
        name = f"parity {spec.encoder}+{spec.decoder} k={k}"
        fast = [each for each in backups if k * each.proposal.share <= SLACK]
        if not backups:
            refused[name] = "no backup was found"
        elif not fast:
            fastest = min((each.proposal for each in backups), key=lambda each: each.share)
            refused[name] = (
                f"{k} runs of the fastest backup that was found, {fastest.network}, take "
                f"{k * fastest.share:.2f} of the model's time"
            )
        else:
            best = max(fast, key=lambda each: each.candidate.score)
            backup = best.exported.backup
            assert backup is not None
            made = best.candidate.in_slots(code_for(spec, teacher), backup)
            proposal = Proposal(best.proposal.network, spec, k * best.proposal.share)
            entries.append(Entry(proposal, made, best.candidate))
    return entries, refused


@dataclass(frozen=True)
class Finalist:
    """A trained candidate, measured.

    `ms` are milliseconds of a run by batch size, `slot_ms` those of its backup by itself if it is a
    parity model that has one. `agreement` is its score with the deployed model's predictions as
    labels, on queries that none was fitted to, and `interval` that score's; `accuracy` is
    against labels, where there are any. `coverage` is the share of queries that the gate of
    the wanted level lets it answer, and lets its backup by itself; 0 where that level was not
    shown.
    """

    proposal: Proposal
    exported: Exported
    candidate: Candidate
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
        """The name in reports."""
        return self.proposal.name

    @property
    def coded(self) -> bool:
        """Whether it takes several queries at once."""
        return self.proposal.code is not None

    @property
    def covered(self) -> float:
        """The share of queries that it may answer."""
        return self.coverage.get("reconstruction" if self.coded else "backup", 0.0)

    @property
    def saving(self) -> float:
        """How much sooner late queries are answered than by a copy, in F's times, on average."""
        return saving(self.covered, self.share)

    @property
    def has_slot(self) -> bool:
        """Whether it is a parity model with a backup by itself that may answer."""
        return self.slot_ms is not None and bool(self.coverage.get("backup"))


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
    entries: Sequence[Entry],
    deployed: Bundle,
    measured: Measured,
    level: float,
    batches: Sequence[int],
    folder: Path,
) -> tuple[dict[int, float], list[Finalist]]:
    """Return the milliseconds of the deployed model by batch size, and every entry, measured.

    All are timed side by side. `folder` is for bundles that are needed meanwhile.
    """
    own = deployed.stored(deployed.manifest.deployed)
    models = [own]
    for each in entries:
        models.append(each.exported.first)
        if each.proposal.code is not None and each.exported.backup is not None:
            models.append(each.exported.backup)
    runnable = [OnnxModel(each.onnx, signature=each.signature) for each in models]
    by_batch = {batch: inference_times(runnable, batch, measured.sizes) for batch in batches}
    times = iter(
        [{batch: taken[place] for batch, taken in by_batch.items()} for place in range(len(models))]
    )
    base, least = next(times), min(batches)
    finalists = []
    for place, entry in enumerate(entries):
        ms = next(times)
        has_slot = entry.proposal.code is not None and entry.exported.backup is not None
        slot_ms = next(times) if has_slot else None
        bundle = _bundle_of(deployed, entry, folder / str(place))
        finalists.append(
            _judge(entry, bundle, measured, level, ms, slot_ms, ms[least] / base[least])
        )
    return base, finalists


def _bundle_of(deployed: Bundle, entry: Entry, out: Path) -> Bundle:
    """Write a bundle with one stand-in, to measure with."""
    made = entry.exported
    return write_bundle(
        out,
        deployed=deployed.stored(deployed.manifest.deployed),
        parity=made.parity,
        coders=made.coders,
        backups=[] if made.backup is None else [made.backup],
        code=entry.proposal.code,
        imitated=deployed.manifest.imitated,
    )


def _judge(
    entry: Entry,
    bundle: Bundle,
    measured: Measured,
    level: float,
    ms: dict[int, float],
    slot_ms: dict[int, float] | None,
    share: float,
) -> Finalist:
    queries, metric = measured.queries, measured.metric
    calibration: dict[StandIn, Calibration] = {}
    if queries.calibration is not None and len(queries.calibration):
        outputs = Outputs(bundle, queries.calibration, predictions=measured.calibration)
        calibration = calibrate_gates(outputs, metric=metric, levels={*LEVELS, level})
    stand_in: StandIn = "backup" if entry.proposal.code is None else "reconstruction"
    assert queries.test is not None
    answers = Outputs(bundle, queries.test, predictions=measured.test).answers()[stand_in]
    right = labels_from(measured.test[answers.rows], metric)
    accuracy = None
    if queries.test_labels is not None:
        accuracy = score(metric, answers.outputs, queries.test_labels[answers.rows])
    reached = {name: each.at_least(level) for name, each in calibration.items()}
    return Finalist(
        entry.proposal,
        entry.exported,
        entry.candidate,
        ms,
        slot_ms,
        share,
        score(metric, answers.outputs, right),
        score_interval(metric, answers.outputs, right),
        accuracy,
        {name: 0.0 if each is None else each.coverage for name, each in reached.items()},
        calibration,
    )


def times_of(chosen: Sequence[Finalist], base: InferenceTimes) -> InferenceTimes:
    """Return the times of a bundle with the `chosen`, given the deployed model's."""
    coded = next((each for each in chosen if each.coded), None)
    backups = [each.ms[1] for each in chosen if not each.coded]
    if not backups and coded is not None and coded.has_slot and coded.slot_ms is not None:
        backups = [coded.slot_ms[1]]
    parity = None if coded is None else coded.ms[1]
    return InferenceTimes(base.deployed, parity, tuple(backups), base.deployed_batch)
