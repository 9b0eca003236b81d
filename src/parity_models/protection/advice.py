"""Stand-ins simulated under a user's load, the choice among them, and its reasons in words."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from parity_models.codes import Code
from parity_models.errors import UserError
from parity_models.protection.calm_run import ServingOverheads
from parity_models.protection.finalists import Finalist
from parity_models.protection.options import Scenario
from parity_models.protection.scene import ALIKE, Outcome, Scene, Service, added_by_row
from parity_models.roles import BACKUP, DEPLOYED, Source, parity_role
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, EqualResources, Hedging, StandIns

LEAST_QUERIES, MOST_QUERIES = 3_000, 40_000
"""Queries of one simulation."""

ADAPTIVE = 3
"""The time of a simulation of adaptive, as a multiple of one without redundancy."""

LESS_URGENT, TRIES = 5.0, 3
"""The divisor of the urgency that keeps within the extra work, and how often it is applied."""

Times = Mapping[int, float]
"""Milliseconds of a run by batch size; that of one query is among them."""


@dataclass(frozen=True)
class Protection:
    """A policy with a finalist as stand-in, or with none, and its simulated outcome.

    `extra_work` is the work beyond that without redundancy, in runs of the deployed model for each
    query. `urgency` is the option of the policy, where it is not the default.
    """

    name: str
    finalist: Finalist | None
    urgency: float | None
    outcome: Outcome
    extra_work: float

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of latency."""
        return self.outcome.p99_ms


class Simulations:
    """Simulations of one deployed model under one load.

    The model takes the times `deployed`, and serving adds the `overheads`, if they are known. Units
    have up to `max_batch` queries, for which a time is known. Extra work should be at most
    `extra_work`. All `plans` simulations together may take `seconds`. Work is the time of all units
    without disturbances, so contention does not change it.
    """

    def __init__(
        self,
        scenario: Scenario,
        extra_work: float,
        deployed: Times,
        seconds: float,
        plans: int,
        max_batch: int = 1,
        overheads: ServingOverheads | None = None,
    ) -> None:
        self._extra_work = extra_work
        self._deployed = deployed
        self._max_batch = max_batch
        self._overheads = overheads
        # The load and the contention are in units of the model's own time.
        bare = Service({DEPLOYED: deployed[1] / 1e3})
        self.scene = Scene.of(bare, scenario, queries=LEAST_QUERIES)
        began = time.monotonic()
        self.without = self._without()
        took = max(1e-3, time.monotonic() - began)
        affordable = int(LEAST_QUERIES * seconds / (ADAPTIVE * took * max(1, plans)))
        queries = min(MOST_QUERIES, affordable)
        if queries > LEAST_QUERIES and scenario.queries is None:
            self.scene = Scene.of(bare, scenario, queries=queries)
            self.without = self._without()

    def _without(self) -> Protection:
        self._usual = 0.0  # the work without redundancy
        plan = self._run("no redundancy", PolicyChoice(EqualResources.name))
        self._usual = plan.extra_work
        return replace(plan, extra_work=0.0)

    def hedging(self) -> Protection:
        """Simulate copies of late queries, which a stand-in has to beat."""
        return self._run("hedging", PolicyChoice(Hedging.name, dispatch="latency-aware"))

    def with_stand_in(self, finalist: Finalist) -> list[Protection]:
        """Simulate a stand-in for late queries.

        The first simulation has the policy's own urgency. Further ones have less, as long as the
        extra work is more than wanted.
        """
        plans = [self._run(finalist.name, PolicyChoice(Adaptive.name), finalist)]
        urgency = Adaptive.Options().urgency
        while plans[-1].extra_work > self._extra_work and len(plans) <= TRIES:
            urgency /= LESS_URGENT
            choice = PolicyChoice(Adaptive.name, {"urgency": urgency})
            plans.append(self._run(finalist.name, choice, finalist))
        return plans

    def _run(self, name: str, choice: PolicyChoice, finalist: Finalist | None = None) -> Protection:
        times: dict[str, Times] = {DEPLOYED: self._deployed}
        stand_ins, coverage = StandIns(), {}
        if finalist is not None and finalist.code is not None:
            code = Code(finalist.code, (1,), (1,))
            stand_ins = StandIns(code)
            times |= {parity_role(j): finalist.ms for j in range(code.r)}
            coverage = {str(Source.RECONSTRUCTION): finalist.covered}
        elif finalist is not None:
            stand_ins = StandIns(None, (BACKUP,))
            times[BACKUP] = finalist.ms
            coverage = {str(Source.BACKUP): finalist.covered}
        service = Service(
            {role: ms[1] / 1e3 for role, ms in times.items()},
            stand_ins,
            coverage,
            max_batch=self._max_batch,
            added={role: self._added(ms) for role, ms in times.items()},
        )
        if (known := self._overheads) is not None:
            service = replace(service, overhead=known.held_ms / 1e3, outside_ms=known.outside_ms)
        outcome = replace(self.scene, service=service).outcome(choice)
        work = 0.0
        for role, units in outcome.units.items():
            ms = times.get(role, self._deployed)
            work += ms[1] * (units + self._added(ms) * (outcome.rows[role] - units))
        extra = work / (self.scene.queries * self._deployed[1]) - self._usual
        return Protection(name, finalist, choice.options.get("urgency"), outcome, extra)

    def _added(self, ms: Times) -> float:
        batch = self._max_batch
        return 0.0 if batch == 1 else added_by_row(ms[1], ms[batch], batch)


def able(finalists: Sequence[Finalist], level: float) -> list[Finalist]:
    """Return those that may answer at all. Raises UserError, with the nearest, if none may."""
    found = [each for each in finalists if each.covered > 0]
    if found:
        return found
    nearest = max(finalists, key=lambda each: each.agreement)
    raise UserError(
        f"no stand-in was shown to agree with the model in {level:g} of cases: the nearest is "
        f"{nearest.name}, which scores {nearest.agreement:.3f} on all queries; give a lower "
        "--agreement, more --inputs, or more --minutes"
    )


@dataclass(frozen=True)
class Advice:
    """The plan that is recommended, and sentences on the reasons and the alternatives.

    `helps` is whether its p99 is below that of plans without a stand-in by more than chance.
    """

    plan: Protection
    helps: bool
    sentences: tuple[str, ...]


def advise(
    tried: Sequence[Sequence[Protection]], others: Sequence[Protection], extra_work: float
) -> Advice:
    """Recommend the plan with the lowest p99 within the extra work.

    Of those that differ by chance, it is the one whose stand-in saves most.

    Args:
        tried: For each stand-in its plans, with the policy's own urgency first.
        others: Plans without a stand-in, the one without redundancy first.
        extra_work: The allowed extra work.

    Raises:
        UserError: No plan keeps within the extra work; the nearest is named.
    """
    plans = [each[-1] for each in tried]
    within = [plan for plan in plans if plan.extra_work <= extra_work]
    if not within:
        nearest = min(plans, key=lambda plan: plan.extra_work)
        raise UserError(
            f"no stand-in keeps within --extra-work {extra_work:g}: the nearest is "
            f"{nearest.name}, with {nearest.extra_work:.3f}; give --extra-work "
            f"{_above(nearest.extra_work):g}"
        )
    lowest = min(plan.p99_ms for plan in within)
    alike = [plan for plan in within if plan.p99_ms <= ALIKE * lowest]
    best = max(alike, key=lambda plan: (plan.finalist.saving if plan.finalist else 0, -plan.p99_ms))
    without = others[0]
    rivals = [other for other in others if other.extra_work <= extra_work] or others
    rival = min(rivals, key=lambda other: other.p99_ms)
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
    faster = [each[0] for each in tried if each[0].p99_ms < best.p99_ms / ALIKE]
    if faster:
        better = min(faster, key=lambda plan: plan.p99_ms)
        sentences.append(
            f"To do better: {better.name} has a p99 of {better.p99_ms:.2f} ms, for "
            f"{better.extra_work:.1%} more work (--extra-work {_above(better.extra_work):g})."
        )
    return Advice(best, helps, tuple(sentences))


def _above(extra: float) -> float:
    return round(extra + 0.005, 2) if extra < 10 else extra
