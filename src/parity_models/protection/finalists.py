"""The finalists of a search: measured, simulated under the user's load, and the choice among them.

Finalists are ranked by what they do on queries that chose their best epoch. The queries that
calibrate serve the chosen one alone, so choosing cannot favour what happened to agree on those.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from parity_models.codes import Code, CodeSpec
from parity_models.evaluation.accuracy import Interval, score_interval
from parity_models.evaluation.calibration import calibrate_gates, estimate_coverage
from parity_models.evaluation.outputs import Outputs, deployed_predictor
from parity_models.models.bundle import Bundle, write_bundle
from parity_models.models.gate import AnsweredClass, Calibration, has_head
from parity_models.models.inference_time import inference_times
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.queries import commonest
from parity_models.protection.options import Scenario
from parity_models.protection.scene import ALIKE, Outcome, Scene, Service
from parity_models.roles import BACKUP, DEPLOYED, parity_role, source_of
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, EqualResources, Hedging, StandIns
from parity_models.tasks.metrics import METRICS, labels_from, score
from parity_models.training.candidates import Candidate, Exported, saving
from parity_models.training.teacher import Queries


@dataclass(frozen=True)
class Finalist:
    """The measurements of a trained candidate: parity models of a `code`, or a backup.

    `ms` are the milliseconds of a run, `share` is that as a share of the model's. `agreement` is
    the score with the deployed model's predictions as labels, on test queries, and `interval` that
    score's. `covered` is the share of queries that it may answer at the wanted level: estimated,
    and once it is calibrated, shown.
    """

    name: str
    code: CodeSpec | None
    ms: float
    share: float
    agreement: float
    interval: Interval | None
    covered: float

    @property
    def saving(self) -> float:
        """The mean time that a late query saves over a copy, in runs of the model."""
        return saving(self.covered, self.share)


@dataclass(frozen=True)
class Trained:
    """A finalist with its models, and with the bundle of these and the deployed model."""

    finalist: Finalist
    candidate: Candidate
    exported: Exported
    bundle: Bundle

    def calibrate(
        self,
        queries: NDArray[Any],
        metric: str,
        level: float,
        risk: float,
        answer_only: Sequence[AnsweredClass] = (),
    ) -> tuple["Trained", Calibration] | None:
        """Return it with the share that it may answer at the level, and its gate.

        None if these `queries` do not show that it reaches the level.
        """
        outputs = Outputs(self.bundle, queries)
        gates = calibrate_gates(
            outputs, metric=metric, named=[level], answer_only=answer_only, risk=risk
        )
        for gate in gates.values():
            if (reached := gate.at_least(level)) is not None:
                finalist = replace(self.finalist, covered=reached.coverage)
                return replace(self, finalist=finalist), gate
        return None


def measure(
    candidates: Sequence[Candidate],
    deployed: Bundle,
    queries: Queries,
    metric: str,
    level: float,
    folder: Path,
    answer_only: Sequence[AnsweredClass] = (),
) -> tuple[float, list[Trained]]:
    """Measure trained candidates against the deployed model.

    Args:
        candidates: The candidates.
        deployed: A bundle with the deployed model.
        queries: Those for tests are judged by the `metric`.
        metric: Judges outputs with the deployed model's predictions as labels.
        level: The agreement that gates are to keep.
        folder: A folder for bundles that are needed meanwhile.
        answer_only: The classes that gates are to let through; all, if there are none.

    Returns:
        The milliseconds of the deployed model, and each candidate's measurements.
    """
    exported = [each.exported(queries, [level]) for each in candidates]
    own = deployed.stored(deployed.manifest.deployed)
    models = [
        OnnxModel(each.onnx, signature=each.signature)
        for each in (own, *(one.first for one in exported))
    ]
    assert queries.test is not None
    sizes = commonest(queries.test, deployed.manifest.deployed.signature)
    base, *times = inference_times(models, sizes=sizes)
    predictions = deployed_predictor(deployed)(queries.test)
    found = []
    for place, (candidate, made, ms) in enumerate(zip(candidates, exported, times, strict=True)):
        bundle = write_bundle(
            folder / str(place),
            deployed=own,
            parity=made.parity,
            backups=[] if made.backup is None or made.parity else [made.backup],
            code=candidate.proposal.code,
            imitated=deployed.manifest.imitated,
        )
        (answers,) = Outputs(bundle, queries.test, predictions=predictions).answers().values()
        right = labels_from(predictions[answers.rows], metric)
        candidate.judge(level, answer_only)  # Ctrl-C may have come before this was done
        covered = candidate.covered
        if has_head(answers.gave):  # which learned from the queries that judge
            right_there = predictions[answers.rows]
            covered = estimate_coverage(answers.gave, right_there, metric, level, answer_only)
        elif METRICS[metric].kind != "classes":  # all or none pass the gate
            covered = float(covered >= level)
        finalist = Finalist(
            candidate.name,
            candidate.proposal.code,
            ms,
            ms / base,
            score(metric, answers.outputs, right),
            score_interval(metric, answers.outputs, right),
            covered,
        )
        found.append(Trained(finalist, candidate, made, bundle))
    return base, found


# Simulations


@dataclass(frozen=True)
class Protection:
    """A policy with a finalist as stand-in, or with none, and its simulated outcome.

    `extra_work` is the work beyond one run for each query, in runs of the deployed model.
    """

    name: str
    finalist: Finalist | None
    outcome: Outcome
    extra_work: float

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of latency."""
        return self.outcome.p99_ms


class Simulations:
    """Simulations of a deployed model, which takes `ms`, under one load.

    Each has so many `queries`, unless the scenario says, for each of which the policy may send
    `budget` redundant tasks.
    """

    def __init__(self, scenario: Scenario, ms: float, budget: float, queries: int) -> None:
        self._ms, self._budget = ms, budget
        self.scene = Scene.of(Service({DEPLOYED: ms / 1e3}), scenario, queries=queries)
        self.without = self._run("no redundancy", PolicyChoice(EqualResources.name))
        self.hedging = self._run("hedging", PolicyChoice(Hedging.name, dispatch="latency-aware"))

    def with_stand_in(self, finalist: Finalist) -> Protection:
        """Simulate a stand-in for late queries."""
        choice = PolicyChoice(Adaptive.name, {"budget": self._budget})
        return self._run(finalist.name, choice, finalist)

    def _run(self, name: str, choice: PolicyChoice, finalist: Finalist | None = None) -> Protection:
        ms = {DEPLOYED: self._ms}
        stand_ins, coverage = StandIns(), {}
        if finalist is not None:
            code = None if finalist.code is None else Code(finalist.code, (1,), (1,))
            stand_ins = StandIns(code, (BACKUP,) if code is None else ())
            roles = [BACKUP] if code is None else [parity_role(j) for j in range(code.r)]
            ms |= dict.fromkeys(roles, finalist.ms)
            coverage = {str(source_of(role)): finalist.covered for role in roles}
        service = Service({role: each / 1e3 for role, each in ms.items()}, stand_ins, coverage)
        outcome = replace(self.scene, service=service).outcome(choice)
        work = sum(units * ms.get(role, self._ms) for role, units in outcome.units.items())
        extra = work / (self.scene.queries * self._ms) - 1
        return Protection(name, finalist, outcome, max(0.0, extra))


def preferred(plans: Sequence[Protection]) -> Protection:
    """Return the plan with the lowest p99; of those that differ by chance, the one that saves most.

    What it saves is its stand-in's saving for a late query.
    """
    lowest = min(plan.p99_ms for plan in plans)
    alike = [plan for plan in plans if plan.p99_ms <= ALIKE * lowest]
    return max(alike, key=lambda plan: (plan.finalist.saving if plan.finalist else 0, -plan.p99_ms))


@dataclass(frozen=True)
class Advice:
    """The plan that is recommended, and sentences on the reasons and the alternatives.

    `helps` is whether its p99 is below that of plans without a stand-in by more than chance.
    """

    plan: Protection
    helps: bool
    sentences: tuple[str, ...]


def advise(best: Protection, without: Protection, hedging: Protection) -> Advice:
    """Say what a plan is worth next to those without a stand-in."""
    rival = min(without, hedging, key=lambda other: other.p99_ms)
    helps = rival.p99_ms > ALIKE * best.p99_ms
    described = best.name
    if (one := best.finalist) is not None:
        described += (
            f". It takes {one.share:.2f} of the model's time and may answer {one.covered:.1%} of "
            "queries"
        )
    said = f"Recommended: {described}."
    if not helps:
        said = (
            f"No stand-in helps here: {rival.name} does as well within the {ALIKE - 1:.0%} that "
            f"may be chance (p99 {rival.p99_ms:.2f} ms). The best is {described}."
        )
    sentences = (
        f"{said} Simulated: p99 {best.p99_ms:.2f} ms, not {without.p99_ms:.2f}; p99.9 "
        f"{best.outcome.p999_ms:.2f} ms, not {without.outcome.p999_ms:.2f}; for "
        f"{best.extra_work:.1%} more work.",
        f"Hedging has a p99 of {hedging.p99_ms:.2f} ms for {hedging.extra_work:.1%} more work, and "
        "every answer is the model's own.",
    )
    return Advice(best, helps, sentences)
