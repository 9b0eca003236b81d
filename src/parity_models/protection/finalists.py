"""The finalists of a search: measured, simulated under the user's load, and the choice among them.

They are ranked by the test queries. The queries that calibrate serve the chosen one alone, so
choosing cannot favour what happened to agree on those.
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
at the same share of what is left, and so on."""


@dataclass
class Finalist:
    """The measurements of a trained candidate.

    `ms` are the milliseconds of a run, `share` is that as a share of the model's. `agreement` is
    the score with the deployed model's predictions as labels, on test queries, and `interval` that
    score's. `covered` is the share of queries that it may answer at the wanted level: estimated,
    and once it is calibrated, shown. `outcome` is simulated, with it as the stand-in.
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
        """The mean time that a late query saves over a copy, in runs of the model."""
        return saving(self.covered, self.share)

    def service(self, covered: float, level: float | None = None) -> Service:
        """Return the model with this stand-in, which may answer a share of queries, as served."""
        return Service(
            {DEPLOYED: self.ms / self.share / 1e3, BACKUP: self.ms / 1e3},
            StandIns(None, True),
            {str(source_of(BACKUP)): covered},
            level=level,
        )


@dataclass(frozen=True)
class Trained:
    """A finalist with its models, the bundle of these and the deployed model, and the estimated
    `coverage` by level: the share of queries that it may answer."""

    finalist: Finalist
    candidate: Candidate
    exported: Exported
    bundle: Bundle
    coverage: Mapping[float, float]

    def calibrate(self, level: float, risk: float) -> Calibration | None:
        """Return its gate, and note the share that it may answer at the level.

        None if the queries for calibration do not show that it reaches the level.
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
    """Measure trained candidates against the deployed model, by the queries for tests.

    Bundles that are needed meanwhile go to `folder`. Returns the milliseconds of the deployed
    model, and each candidate's measurements.
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
class Use:
    """A finalist with a gate of a `level`, and the simulated outcome."""

    trained: Trained
    level: float
    outcome: Outcome


def uses_within(trained: Trained, goal: Goal) -> Iterator[Use]:
    """Yield each policy with the lowest level at which few enough of all answers differ."""
    services = [
        trained.finalist.service(covered, level)
        for level in LEVELS
        if (covered := trained.coverage[level])
    ]
    for plan in Planner(services[-1], goal).plans(services).plans if services else ():
        if plan.level is not None and not plan.missed:
            yield Use(trained, plan.level, plan.outcome)


def preferred(uses: Sequence[Use], *, cheapest: bool = False) -> Use:
    """Return the use with the lowest p99; of those that differ by chance, the one that saves most
    for a late query. The `cheapest` has the least work and, of those alike, the lowest p99."""

    def rank(use: Use) -> tuple[float, float]:
        outcome = use.outcome
        if cheapest:
            return outcome.busy_ms, outcome.p99_ms
        return outcome.p99_ms, -use.trained.finalist.saving

    lowest = min(rank(use)[0] for use in uses)
    return min(
        (use for use in uses if rank(use)[0] <= ALIKE * lowest), key=lambda use: rank(use)[1]
    )


def choose(uses: Sequence[Use], within: Sequence[Use] = ()) -> tuple[Trained, Calibration] | None:
    """Return the preferred finalist and its gate.

    The cheapest of those `within` the share of answers that may differ come first, then all others.
    If the level of one is not shown by the queries for calibration, it is the next best; None if no
    level is.
    """
    risk = RISK
    for left, cheapest in ((list(within), True), (list(uses), False)):
        while left:
            use = preferred(left, cheapest=cheapest)
            gate = use.trained.calibrate(use.level, FIRST_CHOICE * risk)
            if gate is not None:
                return use.trained, gate
            left = [each for each in left if each is not use]
            risk *= 1 - FIRST_CHOICE
    return None
