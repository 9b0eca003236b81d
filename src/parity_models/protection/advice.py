"""The stand-ins to take under a user's load, by simulation, and the reasons in words."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from parity_models.codes import Code
from parity_models.errors import UserError
from parity_models.protection.calm_run import ServingOverheads
from parity_models.protection.finalists import Finalist
from parity_models.protection.scene import Outcome, Scene, Service, added_by_row, scene_of
from parity_models.protection.search_options import SearchOptions
from parity_models.roles import BACKUP, BACKUPS, DEPLOYED, parity_role
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, EqualResources, Hedging, StandIns

LEAST_QUERIES, MOST_QUERIES = 3_000, 40_000
"""Queries of one simulation."""

LESS_URGENT = 5.0
"""By how much the urgency is divided to keep within the extra work."""

TRIES = 3

ALIKE = 1.05
"""Two p99 of which one is at most so many times the other differ by chance."""

Times = Mapping[int, float]
"""Milliseconds of a run by batch size; that of one query is among them."""


@dataclass(frozen=True)
class Protection:
    """A policy with `finalists` for stand-ins, or with none, and its outcome in the simulation.

    Of two finalists the second is a backup: where the first is one, a slower and better one, else
    the one that is used in place of a slot of the first. `extra_work` is in runs of the deployed
    model for each query, more than without redundancy.
    """

    name: str
    finalists: tuple[Finalist, ...]
    policy: PolicyChoice
    outcome: Outcome
    extra_work: float

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of latency."""
        return self.outcome.p99_ms

    @property
    def urgency(self) -> float | None:
        """The option of the policy, where it is not the default."""
        found: float | None = self.policy.options.get("urgency")
        return found


class Simulations:
    """Simulations of one deployed model under one load.

    `deployed` is how long the model runs, `overheads` what serving takes besides, if that is known.
    Units have up to `max_batch` queries, a batch that there is a time for. `seconds` is the time
    that all of them may take, `plans` how many there will be. Work is how long all units would take
    undisturbed: it does not depend on what contention does to either.
    """

    def __init__(
        self,
        options: SearchOptions,
        deployed: Times,
        seconds: float,
        plans: int,
        max_batch: int = 1,
        overheads: ServingOverheads | None = None,
    ) -> None:
        self._options = options
        self._deployed = deployed
        self._max_batch = max_batch
        self._overheads = overheads
        self._usual = 0.0  # the work without redundancy
        bare = Service({DEPLOYED: deployed[1] / 1e3})
        # The load and the contention are in units of the model's own time.
        self.scene = scene_of(bare, options, options, queries=LEAST_QUERIES)
        began = time.monotonic()
        self.without = self._without()
        took = max(1e-3, time.monotonic() - began)
        # Adaptive takes some three times as long as this.
        affordable = int(LEAST_QUERIES * seconds / (3 * took * max(1, plans)))
        queries = min(MOST_QUERIES, affordable)
        if queries > LEAST_QUERIES and options.queries is None:
            self.scene = scene_of(bare, options, options, queries=queries)
            self.without = self._without()

    def _without(self) -> Protection:
        self._usual = 0.0
        choice = PolicyChoice(EqualResources.name)
        plan = self._run("no redundancy", (), choice, StandIns(), {})
        self._usual = plan.extra_work
        return replace(plan, extra_work=0.0)

    def hedging(self) -> Protection:
        """Simulate copies of late queries: what a stand-in has to beat."""
        choice = PolicyChoice(Hedging.name, dispatch="latency-aware")
        return self._run("hedging", (), choice, StandIns(), {})

    def with_stand_ins(self, *finalists: Finalist) -> list[Protection]:
        """Simulate stand-ins that are asked for late queries.

        They are parity models, a backup, both in this order, or two backups, the faster first. The
        first simulation has the policy's urgency, and further ones ever less as long as the extra
        work is more than is wanted.
        """
        plans = [self._adaptive(finalists, None)]
        urgency = Adaptive.Options().urgency
        while plans[-1].extra_work > self._options.extra_work and len(plans) <= TRIES:
            urgency /= LESS_URGENT
            plans.append(self._adaptive(finalists, urgency))
        return plans

    def _adaptive(self, finalists: tuple[Finalist, ...], urgency: float | None) -> Protection:
        choice = PolicyChoice(Adaptive.name, {} if urgency is None else {"urgency": urgency})
        code: Code | None = None
        backups = [each for each in finalists if not each.coded]
        times = {str(role): each.ms for role, each in zip(BACKUPS, backups, strict=False)}
        for each in finalists:
            if each.proposal.code is None:
                continue
            code = Code(each.proposal.code, (1,), (1,))
            times |= {parity_role(j): each.ms for j in range(code.r)}
            if not backups and each.has_slot and each.slot_ms is not None:
                times[BACKUP] = each.slot_ms
        stand_ins = StandIns(code, tuple(role for role in BACKUPS if role in times))
        name = " + ".join(each.name for each in finalists)
        return self._run(name, finalists, choice, stand_ins, times)

    def _run(
        self,
        name: str,
        finalists: tuple[Finalist, ...],
        choice: PolicyChoice,
        stand_ins: StandIns,
        times: Mapping[str, Times],
    ) -> Protection:
        every = {DEPLOYED: self._deployed, **times}
        overheads = self._overheads
        service = Service(
            {role: ms[1] / 1e3 for role, ms in every.items()},
            stand_ins,
            coverage_of(finalists),
            max_batch=self._max_batch,
            added={role: self._added(ms) for role, ms in every.items()},
        )
        if overheads is not None:
            service = replace(
                service,
                overhead=overheads.held / 1e3,
                outside_ms=overheads.outside,
                cores=overheads.shared,
            )
        scene: Scene = replace(self.scene, service=service)
        outcome = scene.outcome(choice)
        work = self._work(outcome, every) / (scene.queries * self._deployed[1])
        return Protection(name, finalists, choice, outcome, work - self._usual)

    def _added(self, ms: Times) -> float:
        batch = self._max_batch
        return 0.0 if batch == 1 else added_by_row(ms[1], ms[batch], batch)

    def _work(self, found: Outcome, times: Mapping[str, Times]) -> float:
        """Return how many milliseconds all units would take undisturbed."""
        total = 0.0
        for role, units in found.units.items():
            ms = times.get(role, self._deployed)
            total += ms[1] * (units + self._added(ms) * (found.rows[role] - units))
        return total


def coverage_of(finalists: Sequence[Finalist]) -> dict[str, float]:
    """Return the share of queries that each stand-in of a bundle may answer, by source."""
    roles, found = iter(BACKUPS), dict[str, float]()
    for each in sorted(finalists, key=lambda one: not one.coded):
        if each.coded:
            found |= {str(name): share for name, share in each.coverage.items()}
        else:  # in place of a slot of a parity model
            found[next(roles)] = each.covered
    return found


def able(finalists: Sequence[Finalist], options: SearchOptions) -> list[Finalist]:
    """Return those that may answer at all. Raises UserError, with the nearest, if none may."""
    found = [each for each in finalists if each.covered > 0]
    if found:
        return found
    nearest = max(finalists, key=lambda each: each.agreement)
    raise UserError(
        f"no stand-in was shown to agree with the model in {options.agreement:g} of cases: the "
        f"nearest is {nearest.name}, which scores {nearest.agreement:.3f} on all queries; give a "
        "lower --agreement, more --inputs, or more --minutes"
    )


def two_together(plans: Sequence[Protection], options: SearchOptions) -> tuple[Finalist, ...]:
    """Return the parity model and the backup that are the best by themselves within the extra work.

    () where there are not both.
    """
    within = [plan for plan in plans if plan.extra_work <= options.extra_work]
    found: list[Finalist] = []
    for coded in (True, False):
        alike = [plan for plan in within if plan.finalists[0].coded == coded]
        if not alike:
            return ()
        found += min(alike, key=lambda plan: plan.p99_ms).finalists
    return tuple(found)


def two_backups(plans: Sequence[Protection], options: SearchOptions) -> tuple[Finalist, ...]:
    """Return the two backups with the lowest p99 by themselves within the extra work.

    The faster comes first. () where no two are on the frontier of time and coverage: one that takes
    longer and may not answer more adds nothing.
    """
    found = [
        plan
        for plan in plans
        if plan.extra_work <= options.extra_work and not plan.finalists[0].coded
    ]
    frontier = [plan for plan in found if not any(_beats(other, plan) for other in found)]
    best = sorted(frontier, key=lambda plan: plan.p99_ms)[:2]
    if len(best) < 2:
        return ()
    return tuple(sorted((plan.finalists[0] for plan in best), key=lambda each: each.share))


def _beats(one: Protection, other: Protection) -> bool:
    mine, its = one.finalists[0], other.finalists[0]
    as_good = mine.share <= its.share and mine.covered >= its.covered
    return as_good and (mine.share, mine.covered) != (its.share, its.covered)


@dataclass(frozen=True)
class Advice:
    """The plan that is recommended, and sentences on the reasons and the alternatives.

    `helps` is whether it has a lower p99 than plans without a stand-in, by more than chance.
    `together` are sentences on two stand-ins in one bundle.
    """

    plan: Protection
    helps: bool
    sentences: tuple[str, ...]
    together: tuple[str, ...] = ()


def advise(
    plans: Sequence[Protection],
    at_full: Sequence[Protection],
    others: Sequence[Protection],
    options: SearchOptions,
) -> Advice:
    """Recommend the plan within the extra work with the lowest p99.

    Of those that are about the same it is one with a single stand-in, the one that saves most.
    `at_full` are the stand-ins without regard to the extra work, `others` the plans without one.
    Raises UserError, with the nearest, if no plan keeps within the extra work.
    """
    within = [plan for plan in plans if plan.extra_work <= options.extra_work]
    if not within:
        nearest = min(plans, key=lambda plan: plan.extra_work)
        raise UserError(
            f"no stand-in keeps within --extra-work {options.extra_work:g}: the nearest is "
            f"{nearest.name}, with {nearest.extra_work:.3f}; give --extra-work "
            f"{_above(nearest.extra_work):g}"
        )
    lowest = min(plan.p99_ms for plan in within)
    alike = [plan for plan in within if plan.p99_ms <= ALIKE * lowest]
    best = max(alike, key=lambda plan: (-len(plan.finalists), _saving(plan), -plan.p99_ms))
    rivals = [other for other in others if other.extra_work <= options.extra_work] or others
    rival = min(rivals, key=lambda other: other.p99_ms)
    helps = rival.p99_ms > ALIKE * best.p99_ms
    sentences = [_recommended(best, others[0], rival, helps=helps)]
    sentences += [
        f"{other.name.capitalize()} has a p99 of {other.p99_ms:.2f} ms for {other.extra_work:.1%} "
        "more work, and every answer is the model's own."
        for other in others[1:]
    ]
    sentences += [_better(best, at_full), *_agreeing_more(best, plans)]
    return Advice(best, helps, tuple(sentences), _together(plans, options))


def _recommended(plan: Protection, without: Protection, rival: Protection, *, helps: bool) -> str:
    found, before = plan.outcome, without.outcome
    simulated = (
        f"Simulated: p99 {found.p99_ms:.2f} ms, not {before.p99_ms:.2f}; p99.9 "
        f"{found.p999_ms:.2f} ms, not {before.p999_ms:.2f}; for {plan.extra_work:.1%} more work."
    )
    if helps:
        together = " together" * (len(plan.finalists) > 1)
        return f"Recommended{together}: {_described(plan.finalists)} {simulated}"
    return (
        f"No stand-in helps here: {rival.name} does as well within the {ALIKE - 1:.0%} that may be "
        f"chance (p99 {rival.p99_ms:.2f} ms). The best is {_described(plan.finalists)} {simulated}"
    )


def _described(finalists: Sequence[Finalist]) -> str:
    if len(finalists) == 1:
        (one,) = finalists
        return (
            f"{one.name}. It takes {one.share:.2f} of the model's time and may answer "
            f"{one.covered:.1%} of queries."
        )
    each = (
        f"{one.name} (takes {one.share:.2f} of the model's time, may answer {one.covered:.1%} of "
        "queries)"
        for one in finalists
    )
    said = f"{' and '.join(each)}. Each late query is asked of the better one for it, live"
    if any(one.coded for one in finalists):
        return f"{said}."
    return f"{said}; one that the first may not answer is asked of the second, if it is still late."


def _together(plans: Sequence[Protection], options: SearchOptions) -> tuple[str, ...]:
    """Say of two together whether they are better than the better one of them alone."""
    alone = {plan.finalists[0].name: plan for plan in plans if len(plan.finalists) == 1}
    said = [_compared_with(plan, alone, options) for plan in plans if len(plan.finalists) > 1]
    backups = [each for each in alone.values() if not each.finalists[0].coded]
    if len(backups) > 1 and not two_backups(backups, options):
        said.append(
            "No two backups were tried together: of those within the extra work one is as fast as "
            "each other and may answer as many queries."
        )
    return tuple(said)


def _compared_with(
    plan: Protection, alone: Mapping[str, Protection], options: SearchOptions
) -> str:
    best = min((alone[each.name] for each in plan.finalists), key=lambda each: each.p99_ms)
    said = (
        f"{plan.name} together have a p99 of {plan.p99_ms:.2f} ms for {plan.extra_work:.1%} more "
        f"work, {best.name} alone {best.p99_ms:.2f} ms for {best.extra_work:.1%}: "
    )
    if plan.extra_work > options.extra_work:
        return f"{said}two take more work than --extra-work {options.extra_work:g}."
    chance = f"the {ALIKE - 1:.0%} that may be chance"
    if best.p99_ms > ALIKE * plan.p99_ms:
        return f"{said}two are better, by more than {chance}."
    return f"{said}not better by more than {chance}, so that one will do."


def _saving(plan: Protection) -> float:
    return max((each.saving for each in plan.finalists), default=0.0)


def _above(extra: float) -> float:
    return round(extra + 0.005, 2) if extra < 10 else extra


def _better(plan: Protection, at_full: Sequence[Protection]) -> str:
    faster = [each for each in at_full if each.p99_ms < plan.p99_ms / ALIKE]
    if not faster:
        return "Nothing that was tried has a lower p99, whatever the work; more --minutes may."
    best = min(faster, key=lambda each: each.p99_ms)
    return (
        f"To do better: {best.name} has a p99 of {best.p99_ms:.2f} ms, for {best.extra_work:.1%} "
        f"more work (--extra-work {_above(best.extra_work):g})."
    )


def _agreeing_more(plan: Protection, plans: Sequence[Protection]) -> list[str]:
    mine = max(plan.finalists, key=lambda each: each.agreement)
    best = max(
        (each for other in plans for each in other.finalists), key=lambda each: each.agreement
    )
    if best.agreement <= mine.agreement:
        return []
    return [
        f"{best.name} agrees with the model more often ({best.agreement:.1%} of all queries, "
        f"not {mine.agreement:.1%}), in {best.share:.2f} of the model's time, not {mine.share:.2f}."
    ]
