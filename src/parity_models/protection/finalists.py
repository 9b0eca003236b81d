"""The finalists of a search: measured, simulated under the user's load, and the choice among them.

Finalists are ranked by what they do on queries that chose their best epoch. The queries that
calibrate serve the chosen one alone, so choosing cannot favour what happened to agree on those.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code, CodeSpec
from parity_models.evaluation.accuracy import Interval, score_interval
from parity_models.evaluation.calibration import calibrate_gates
from parity_models.evaluation.judging import judged_shape
from parity_models.evaluation.outputs import Outputs, deployed_predictor
from parity_models.models.bundle import Bundle, write_bundle
from parity_models.models.gate import Calibration, StandIn
from parity_models.models.inference_time import inference_times
from parity_models.models.onnx_model import OnnxModel
from parity_models.models.queries import commonest
from parity_models.models.signature import Sizes
from parity_models.protection.options import Scenario
from parity_models.protection.scene import ALIKE, Outcome, Scene, Service
from parity_models.roles import BACKUP, DEPLOYED, Source, parity_role
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, EqualResources, Hedging, StandIns
from parity_models.tasks.metrics import METRICS, labels_from, score
from parity_models.training.candidates import Candidate, Exported, saving
from parity_models.training.teacher import Queries

LEAST_QUERIES, MOST_QUERIES = 3_000, 40_000
"""Queries of one simulation."""

ADAPTIVE = 3
"""The time of a simulation of adaptive, as a multiple of one without redundancy."""


@dataclass(frozen=True)
class Finalist:
    """The measurements of a trained candidate: parity models of a `code`, or a backup.

    `ms` are the milliseconds of a run, `share` is that as a share of the model's. `agreement` is
    the score with the deployed model's predictions as labels, on test queries, and `interval` that
    score's; `accuracy` is against labels, where there are any. `covered` is the share of queries
    that it may answer at the wanted level: estimated, and once it is calibrated, shown.
    """

    name: str
    code: CodeSpec | None
    ms: float
    share: float
    agreement: float
    interval: Interval | None
    accuracy: float | None
    covered: float

    @property
    def saving(self) -> float:
        """The mean time that a late query saves over a copy, in runs of the model."""
        return saving(self.covered, self.share)


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


@dataclass(frozen=True)
class Trained:
    """A finalist with its models, in a bundle with the deployed model."""

    finalist: Finalist
    candidate: Candidate
    exported: Exported
    bundle: Bundle

    @property
    def role(self) -> StandIn:
        """The source of its answers."""
        return "reconstruction" if self.exported.parity else "backup"

    def calibrate(
        self, measured: Measured, level: float, risk: float
    ) -> tuple[Calibration | None, float]:
        """Return its gate, and the share of queries that this lets it answer at the level."""
        queries = measured.queries.calibration
        if queries is None or not len(queries):
            return None, 0.0
        outputs = Outputs(self.bundle, queries, predictions=measured.calibration)
        gates = calibrate_gates(outputs, metric=measured.metric, named=[level], risk=risk)
        gate = gates.get(self.role)
        reached = None if gate is None else gate.at_least(level)
        return gate, 0.0 if reached is None else reached.coverage


def measure(
    candidates: Sequence[Candidate],
    deployed: Bundle,
    measured: Measured,
    level: float,
    folder: Path,
) -> tuple[float, list[Trained]]:
    """Measure trained candidates against the deployed model.

    Args:
        candidates: The candidates.
        deployed: A bundle with the deployed model.
        measured: The model's predictions.
        level: The agreement that gates are to keep.
        folder: A folder for bundles that are needed meanwhile.

    Returns:
        The milliseconds of the deployed model, and each candidate's measurements.
    """
    exported = [each.exported() for each in candidates]
    own = deployed.stored(deployed.manifest.deployed)
    models = [
        OnnxModel(each.onnx, signature=each.signature)
        for each in (own, *(one.first for one in exported))
    ]
    base, *times = inference_times(models, sizes=measured.sizes)
    queries, metric = measured.queries, measured.metric
    assert queries.test is not None
    found = []
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
        (answers,) = Outputs(bundle, queries.test, predictions=measured.test).answers().values()
        right, accuracy = labels_from(measured.test[answers.rows], metric), None
        if queries.test_labels is not None:
            accuracy = score(metric, answers.outputs, queries.test_labels[answers.rows])
        covered = candidate.covered
        if METRICS[metric].kind != "classes":  # all or none pass the gate
            covered = float(covered >= level)
        finalist = Finalist(
            candidate.name,
            candidate.proposal.code,
            ms,
            ms / base,
            score(metric, answers.outputs, right),
            score_interval(metric, answers.outputs, right),
            accuracy,
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

    The policy may send `budget` redundant tasks for each query. All `plans` simulations together
    may take `seconds`. Work is the time of units without disturbances.
    """

    def __init__(
        self, scenario: Scenario, ms: float, budget: float, seconds: float, plans: int
    ) -> None:
        self._ms, self._budget = ms, budget
        bare = Service({DEPLOYED: ms / 1e3})
        self.scene = Scene.of(bare, scenario, queries=LEAST_QUERIES)
        began = time.monotonic()
        self.without = self._run("no redundancy", PolicyChoice(EqualResources.name))
        took = max(1e-3, time.monotonic() - began)
        affordable = int(LEAST_QUERIES * seconds / (ADAPTIVE * took * max(1, plans)))
        queries = min(MOST_QUERIES, affordable)
        if queries > LEAST_QUERIES and scenario.queries is None:
            self.scene = Scene.of(bare, scenario, queries=queries)
            self.without = self._run("no redundancy", PolicyChoice(EqualResources.name))

    def hedging(self) -> Protection:
        """Simulate copies of late queries, which a stand-in has to beat."""
        return self._run("hedging", PolicyChoice(Hedging.name, dispatch="latency-aware"))

    def with_stand_in(self, finalist: Finalist) -> Protection:
        """Simulate a stand-in for late queries."""
        choice = PolicyChoice(Adaptive.name, {"budget": self._budget})
        return self._run(finalist.name, choice, finalist)

    def _run(self, name: str, choice: PolicyChoice, finalist: Finalist | None = None) -> Protection:
        ms = {DEPLOYED: self._ms}
        stand_ins, coverage = StandIns(), {}
        if finalist is not None and finalist.code is not None:
            code = Code(finalist.code, (1,), (1,))
            stand_ins = StandIns(code)
            ms |= {parity_role(j): finalist.ms for j in range(code.r)}
            coverage = {str(Source.RECONSTRUCTION): finalist.covered}
        elif finalist is not None:
            stand_ins = StandIns(None, (BACKUP,))
            ms[BACKUP] = finalist.ms
            coverage = {str(Source.BACKUP): finalist.covered}
        service = Service({role: each / 1e3 for role, each in ms.items()}, stand_ins, coverage)
        outcome = replace(self.scene, service=service).outcome(choice)
        work = sum(units * ms.get(role, self._ms) for role, units in outcome.units.items())
        extra = work / (self.scene.queries * self._ms) - 1
        return Protection(name, finalist, outcome, max(0.0, extra))


@dataclass(frozen=True)
class Advice:
    """The plan that is recommended, and sentences on the reasons and the alternatives.

    `helps` is whether its p99 is below that of plans without a stand-in by more than chance.
    """

    plan: Protection
    helps: bool
    sentences: tuple[str, ...]


def preferred(plans: Sequence[Protection]) -> Protection:
    """Return the plan with the lowest p99; of those that differ by chance, the one that saves most.

    What it saves is its stand-in's saving for a late query.
    """
    lowest = min(plan.p99_ms for plan in plans)
    alike = [plan for plan in plans if plan.p99_ms <= ALIKE * lowest]
    return max(alike, key=lambda plan: (plan.finalist.saving if plan.finalist else 0, -plan.p99_ms))


def advise(best: Protection, others: Sequence[Protection]) -> Advice:
    """Say what a plan is worth next to `others` without a stand-in, no redundancy first."""
    without = others[0]
    rival = min(others, key=lambda other: other.p99_ms)
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
    sentences = [
        f"{said} Simulated: p99 {best.p99_ms:.2f} ms, not {without.p99_ms:.2f}; p99.9 "
        f"{best.outcome.p999_ms:.2f} ms, not {without.outcome.p999_ms:.2f}; for "
        f"{best.extra_work:.1%} more work."
    ]
    sentences += [
        f"{other.name.capitalize()} has a p99 of {other.p99_ms:.2f} ms for {other.extra_work:.1%} "
        "more work, and every answer is the model's own."
        for other in others[1:]
    ]
    return Advice(best, helps, tuple(sentences))
