"""The finalists of a search: measured, simulated under the user's load, and the choice among them.

They are ranked by the test queries. The calibration queries are for the chosen one only, so the
choice cannot favour one that happened to agree on those.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parity_models.evaluation.accuracy import Interval, share_interval
from parity_models.evaluation.calibration import (
    LEVELS,
    RISK,
    calibrate_gates,
    estimate_coverage,
)
from parity_models.evaluation.outputs import Outputs, deployed_predictor
from parity_models.models.bundle import Bundle, write_bundle
from parity_models.models.gate import Calibration, suited
from parity_models.models.inference_time import inference_times
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.queries import commonest
from parity_models.protection.plan import Goal, Planner
from parity_models.protection.scene import ALIKE, Outcome, Service
from parity_models.roles import BACKUP, DEPLOYED, source_of
from parity_models.scheduling.policies import StandIns
from parity_models.tasks.metrics import METRICS, agreement_for, labels_from, score
from parity_models.training.candidates import Candidate, Exported, Lesson, saving

FIRST_CHOICE = 0.8
"""The first choice is calibrated at this share of the risk; if its level is not shown, the next one
at the same share of the rest, and so on."""


@dataclass
class Finalist:
    """The measurements of a trained candidate.

    `ms` are the milliseconds of a run, and `share` their ratio to the model's. `agreement` is the
    score with the deployed model's predictions as labels, on test queries, and `interval` that
    score's. `covered` is the share of queries that it may answer at the wanted level, an estimate
    until it is calibrated. `outcome` is simulated, with it as the stand-in.
    """

    name: str
    ms: float
    share: float
    agreement: float
    interval: Interval | None
    covered: float
    outcome: Outcome | None = None

    @property
    def saving(self) -> float:
        """The mean time that it saves a late query over a copy, as a share of the model's."""
        return saving(self.covered, self.share)

    def service(self, covered: float, level: float | None = None) -> Service:
        """Return the service with this stand-in, which may answer a share `covered` of queries."""
        return Service(
            {DEPLOYED: self.ms / self.share / 1e3, BACKUP: self.ms / 1e3},
            StandIns(None, True),
            {str(source_of(BACKUP)): covered},
            level=level,
        )


@dataclass(frozen=True)
class Trained:
    """A finalist with its models, a bundle of these and the deployed model, and the `coverage` by
    level: the estimated share of queries that it may answer."""

    finalist: Finalist
    candidate: Candidate
    exported: Exported
    bundle: Bundle
    coverage: Mapping[float, float]

    def calibrate(self, level: float, risk: float) -> Calibration | None:
        """Return its gate, and record the share that it may answer at the level.

        None if the calibration queries do not show that it reaches the level.
        """
        lesson = self.candidate.lesson
        assert lesson.queries.calibration is not None
        (gate,) = calibrate_gates(
            Outputs(self.bundle, lesson.queries.calibration),
            metric=lesson.data.metric,
            named=[level],
            allowed=lesson.allowed,
            risk=risk,
        ).values()
        if (reached := gate.at_least(level)) is None:
            return None
        self.finalist.covered = reached.coverage
        return gate


def measure(
    candidates: Sequence[Candidate], lesson: Lesson, folder: Path
) -> tuple[float, list[Trained]]:
    """Measure trained candidates against the deployed model on the test queries.

    Temporary bundles go to `folder`. Returns the milliseconds of the deployed model, and each
    candidate's measurements.
    """
    deployed, queries, metric = lesson.teacher.bundle, lesson.queries, lesson.data.metric
    assert lesson.level is not None
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
        coverage = {
            level: estimate_coverage(answers.gave, wanted, metric, level, lesson.allowed)
            for level in {*LEVELS, lesson.level}
        }
        if suited(agreement_for(metric, wanted).kind, answers.gave) == "none":
            coverage = {level: float(each >= level) for level, each in coverage.items()}
        covered = coverage[lesson.level]
        finalist = Finalist(candidate.name, ms, ms / base, agreed, interval, covered)
        found.append(Trained(finalist, candidate, made, bundle, coverage))
    return base, found


@dataclass(frozen=True)
class GatedFinalist:
    """A finalist with a gate of a `level`, and the simulated outcome."""

    trained: Trained
    level: float
    outcome: Outcome


def gated_within(trained: Trained, goal: Goal) -> Iterator[GatedFinalist]:
    """Yield each policy with the lowest level at which few enough of all answers differ."""
    services = [
        trained.finalist.service(covered, level)
        for level in LEVELS
        if (covered := trained.coverage[level])
    ]
    for plan in Planner(services[-1], goal).plans(services).plans if services else ():
        if plan.level is not None and not plan.missed:
            yield GatedFinalist(trained, plan.level, plan.outcome)


def preferred(among: Sequence[GatedFinalist], *, cheapest: bool = False) -> GatedFinalist:
    """Return the finalist with the lowest p99; of those that differ by chance, the one that saves a
    late query most. If `cheapest`: the least work and, of those alike, the lowest p99."""

    def rank(one: GatedFinalist) -> tuple[float, float]:
        if cheapest:
            return one.outcome.busy_ms, one.outcome.p99_ms
        return one.outcome.p99_ms, -one.trained.finalist.saving

    lowest = min(rank(one)[0] for one in among)
    alike = (one for one in among if rank(one)[0] <= ALIKE * lowest)
    return min(alike, key=lambda one: rank(one)[1])


def choose(
    gated: Sequence[GatedFinalist], within: Sequence[GatedFinalist] = ()
) -> tuple[Trained, Calibration] | None:
    """Return the preferred finalist and its gate.

    First come those `within` the share of answers that may differ, the cheapest first, then all
    others. If calibration does not show the level of one, take the next; None if it shows none.
    """
    risk = RISK
    for left, cheapest in ((list(within), True), (list(gated), False)):
        while left:
            best = preferred(left, cheapest=cheapest)
            gate = best.trained.calibrate(best.level, FIRST_CHOICE * risk)
            if gate is not None:
                return best.trained, gate
            left = [each for each in left if each is not best]
            risk *= 1 - FIRST_CHOICE
    return None
