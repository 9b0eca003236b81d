"""The finalists of a search: measured, simulated under the user's load, and the choice among them.

They are ranked by the test queries. The calibration queries are for the chosen one only, so the
choice cannot favour one that happened to agree on those.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity_models.bundle.bundle import Bundle, write_bundle
from parity_models.bundle.inference_time import inference_times
from parity_models.bundle.onnx_model import OnnxModel
from parity_models.evaluation.accuracy import Interval, share_interval
from parity_models.evaluation.judging import calibrate_gates
from parity_models.evaluation.outputs import Outputs, deployed_predictor
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.policies import StandIns
from parity_models.sizing.scenario import ALIKE, QUANTILES, Outcome, Service
from parity_models.tasks.metrics import METRICS, agreement_for, labels_from, score
from parity_models.tensors.queries import commonest
from parity_models.training.candidates import Candidate, Exported, TrainingContext, saving
from parity_models.trust.calibration import RISK, estimate_coverage
from parity_models.trust.doubt import fit_doubt
from parity_models.trust.gate import Calibration, confidences, suited

FIRST_CHOICE = 0.8
"""The first choice is calibrated at this share of the risk; if its level is not shown, the next one
at the same share of the rest, and so on."""


@dataclass
class Finalist:
    """The measurements of a trained candidate.

    `ms` are the milliseconds of a run, and `share` their ratio to the model's. `agreement` is the
    score with the deployed model's predictions as labels, on test queries, and `interval` that
    score's. `covered` is the share of queries that it may answer at the wanted level, an estimate
    until it is calibrated. `doubts` are equally likely doubts of its outputs, ascending. `outcome`
    is simulated, with it as the stand-in.
    """

    name: str
    ms: float
    share: float
    agreement: float
    interval: Interval | None
    covered: float
    doubts: Sequence[float]
    outcome: Outcome | None = None

    @property
    def saving(self) -> float:
        """The mean time that it saves a late query over a copy, as a share of the model's."""
        return saving(self.covered, self.share)

    def service(self, *, gated: bool) -> Service:
        """Return the service with this stand-in; if `gated`, it may answer a share `covered`."""
        covered = {Source.BACKUP: self.covered}
        return Service(
            {DEPLOYED: self.ms / self.share / 1e3, BACKUP: self.ms / 1e3},
            StandIns(None, True),
            covered,
            covered if gated else {},
            {Source.BACKUP: self.doubts},
        )


@dataclass(frozen=True)
class Contender:
    """A finalist with its models, and a bundle of these and the deployed model."""

    finalist: Finalist
    candidate: Candidate
    exported: Exported
    bundle: Bundle

    def calibrate(self, level: float | None, risk: float) -> Calibration:
        """Return its calibration, and record the share that it may answer at the level, if the
        calibration queries show that it reaches it."""
        context = self.candidate.context
        assert context.queries.calibration is not None
        (gate,) = calibrate_gates(
            Outputs(self.bundle, context.queries.calibration),
            metric=context.data.metric,
            named=[] if level is None else [level],
            allowed=context.allowed,
            risk=risk,
        ).values()
        if level is not None and (reached := gate.at_least(level)) is not None:
            self.finalist.covered = reached.coverage
        return gate


def measure(
    candidates: Sequence[Candidate], context: TrainingContext, folder: Path
) -> tuple[float, list[Contender]]:
    """Measure trained candidates against the deployed model on the test queries.

    Temporary bundles go to `folder`. Returns the milliseconds of the deployed model, and each
    candidate's measurements.
    """
    deployed, queries, metric = context.teacher.bundle, context.queries, context.data.metric
    assert context.level is not None
    exported = [each.exported() for each in candidates]
    own = deployed.stored(deployed.manifest.deployed)
    backups = [made.backup for made in exported if made.backup is not None]
    models = [OnnxModel(each.onnx, signature=each.signature) for each in (own, *backups)]
    assert queries.test is not None
    sizes = commonest(queries.test, deployed.manifest.deployed.signature)
    base, *times = inference_times(models, sizes=sizes)
    predictions = deployed_predictor(deployed)(queries.test)
    found = []
    for place, (candidate, made, ms) in enumerate(zip(candidates, exported, times, strict=True)):
        bundle = write_bundle(
            folder / str(place),
            deployed=own,
            backup=made.backup,
            imitated=deployed.manifest.imitated,
        )
        (answers,) = Outputs(bundle, queries.test, predictions=predictions).answers().values()
        wanted = predictions[answers.rows]
        right = labels_from(wanted, metric)
        agreed = score(metric, answers.outputs, right)
        of_classes = METRICS[metric].kind == "classes"
        interval = share_interval(agreed, len(right)) if of_classes else None
        covered = estimate_coverage(answers.gave, wanted, metric, context.level, context.allowed)
        agreement = agreement_for(metric, wanted)
        confidence = suited(agreement.kind, answers.gave)
        if confidence == "none":
            covered = float(covered >= context.level)
        sure = confidences(confidence, answers.gave)
        doubts = fit_doubt(sure, agreement(answers.outputs, wanted)).of(sure)
        spread = np.quantile(doubts, np.linspace(0, 1, QUANTILES)).tolist()
        finalist = Finalist(candidate.name, ms, ms / base, agreed, interval, covered, spread)
        found.append(Contender(finalist, candidate, made, bundle))
    return base, found


def preferred(among: Sequence[Contender]) -> Contender:
    """Return the finalist with the lowest simulated p99; of those that differ by chance, the one
    that saves a late query most."""

    def p99(one: Contender) -> float:
        assert one.finalist.outcome is not None
        return one.finalist.outcome.p99_ms

    lowest = min(map(p99, among))
    alike = (one for one in among if p99(one) <= ALIKE * lowest)
    return max(alike, key=lambda one: one.finalist.saving)


def choose(trained: Sequence[Contender], level: float | None) -> tuple[Contender, Calibration]:
    """Return the preferred finalist and its calibration, which shows this `level` of agreement.

    If calibration does not show it, take the next. If it shows it for none, return the first, whose
    gate then starts closed.
    """
    left, risk, found = list(trained), RISK, list[tuple[Contender, Calibration]]()
    while left:
        best = preferred(left)
        found.append((best, best.calibrate(level, FIRST_CHOICE * risk)))
        if level is None or found[-1][1].at_least(level) is not None:
            return found[-1]
        left.remove(best)
        risk *= 1 - FIRST_CHOICE
    return found[0]
