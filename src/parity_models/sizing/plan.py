"""The policy and the number of instances for a goal and a load, by simulation: `plan`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from rich.console import RenderableType

from parity_models.bundle.bundle import Bundle, open_bundle
from parity_models.errors import UserError, spell
from parity_models.evaluation.judging import replacement
from parity_models.options import gather, option
from parity_models.printed import Printed
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, EqualResources, Hedging
from parity_models.sizing.scenario import (
    ALIKE,
    Outcome,
    Scenario,
    Service,
    SimulationOptions,
    outcome_table,
    service_of,
)
from parity_models.trust.gate import DEFAULT, RequestedLevel

if TYPE_CHECKING:
    from parity_models.fields import GoalFields

QUERIES = 20_000
"""Queries of one simulation, by default."""

HEDGING: tuple[dict[str, float], ...] = ({}, {"hedge_quantile": 0.8, "hedge_budget": 0.3})
"""The options with which hedging is tried: the defaults, best on busy instances, and those that
were best on idle ones."""

MAX_FACTOR, MAX_INSTANCES = 4, 1000
"""The most instances that are tried: as a multiple of what the load takes, and in all."""

ANSWERED = 0.999
"""The share of queries that have to be answered."""


@dataclass(frozen=True, kw_only=True)
class Goal(SimulationOptions):
    """The tail that a service is sized for, and the options of its simulation. Times in seconds."""

    p99: float | None = option(None, "99 % of the answers come within this time.", unit="ms", gt=0)
    p999: float | None = option(
        None, "99.9 % of the answers come within this time.", unit="ms", gt=0
    )
    headroom: float = option(
        0.3, "The share of the instances' time to keep idle.", unit="share", ge=0, lt=1
    )


@dataclass(frozen=True)
class Plan:
    """A policy with a number of instances, and its outcome.

    `missed` are the parts of the goal that are not met, and `excess` is the factor by which the
    worst is missed. `agreement` is the level of its gates, if that was asked for.
    """

    policy: PolicyChoice
    instances: int
    outcome: Outcome
    missed: tuple[str, ...]
    excess: float
    max_batch: int
    agreement: RequestedLevel = DEFAULT

    @property
    def flags(self) -> str:
        """The options of parm serve for this plan."""
        dispatch, level = self.policy.dispatch, self.agreement
        return (
            f"--policy {self.policy} --instances {self.instances} --max-batch {self.max_batch}"
            f"{'' if dispatch is None else f' --dispatch {dispatch}'}"
            f"{'' if isinstance(level, str) else f' --agreement {level or 0:g}'}"
        )


@dataclass(frozen=True)
class Plans(Printed):
    """All `plans` that were tried for a goal, and the `best` one that meets it, if any.

    If the given instances are too few, `enough` is the plan with the fewest that meets the goal.
    """

    service: Service
    goal: Goal
    rate: float
    plans: tuple[Plan, ...]
    best: Plan | None
    enough: Plan | None = None
    bundle: Path | None = None
    first: str | None = None
    """Advice that comes before all else."""

    @property
    def nearest(self) -> Plan:
        """The plan that exceeds the goal by the smallest factor."""
        return min(self.plans, key=lambda plan: plan.excess)

    @property
    def advice(self) -> str:
        """The recommendation, or the nearest plan if none meets the goal."""
        if self.best is None:
            near = self.nearest
            said = (
                f"no plan fits: the nearest is {near.policy} with {_counted(near.instances)}, "
                f"which has {', '.join(near.missed)}"
            )
            if self.enough is not None:
                return f"{said}; {self.enough.policy} fits with {_counted(self.enough.instances)}"
            return f"{said}; give it more time, a faster model, or a stand-in"
        best, found = self.best, self.best.outcome
        said = (
            f"Take {best.policy} with {_counted(best.instances)}: p50 {found.p50_ms:.1f}, p99 "
            f"{found.p99_ms:.1f}, p99.9 {found.p999_ms:.1f} ms; {found.busy_ms:.1f} ms of an "
            f"instance for each query, {found.idle:.0%} idle."
        )
        if not found.stood_in and self.service.stand_ins:
            said += "\nThe goal is met without a stand-in."
        elif found.stood_in:
            said += (
                f"\n{found.stood_in:.1%} of all answers are a stand-in's, and {found.differ:.3%} "
                f"of all are expected to differ from the model's; {spell('differ')} says how many "
                "may."
            )
        return said + f"\nServe it with: parm serve {self.bundle or 'BUNDLE'} {best.flags}"

    @property
    def parts(self) -> Sequence[RenderableType]:
        """The times that were simulated, a table of plans, and the advice."""
        seconds = self.service.seconds.items()
        times = ", ".join(f"{role} {1e3 * each:.2f} ms" for role, each in seconds)
        said = [] if self.first is None else [self.first]
        said += [f"A unit takes: {times}. Load: {self.rate:.4g} queries/s."]
        rows = [
            (
                str(each.policy),
                each.outcome,
                (str(each.instances), f"{each.outcome.idle:.0%}", ", ".join(each.missed)),
            )
            for each in self.plans
        ]
        return [*said, outcome_table("", rows, ("inst.", "idle", "misses")), self.advice]


def plan(
    bundle: Bundle | Path | str | None = None,
    /,
    *,
    options: Goal | None = None,
    **given: Unpack["GoalFields"],
) -> Plans:
    """Find the policy and the number of instances that serve a load within a goal.

    For example, from numbers alone: plan(service_time=0.02, rate=200, p99=0.05). The server's own
    scheduler simulates the policies, with the times of the bundle's models or those given. Without
    `instances`, plan finds the fewest that suffice.

    Args:
        bundle: The bundle to be served, or its folder. Without one, give `service_time`; with a
            `backup_time`, plans with a backup are tried, too.
        options: All options as a Goal, instead of fields by name.
        **given: Fields of Goal: limits, workload, cluster and service; times in seconds.

    Returns:
        All plans that were tried, and the one to take. They print as a table.

    Raises:
        UserError: For options out of range, if both rate and instances are missing, if no query is
            answered, or if more instances are needed than can be simulated.
    """
    goal = gather(Goal, options, given)
    if goal.rate is None and goal.instances is None:
        raise UserError(
            f"there is no load to plan for; give {spell('rate')} or {spell('instances')}"
        )
    opened = bundle if bundle is None or isinstance(bundle, Bundle) else open_bundle(bundle)
    found = Planner(service_of(opened, goal), goal).plans()
    if opened is None:
        return found
    accuracy = opened.manifest.accuracy
    first = None if accuracy is None else replacement(accuracy)
    return replace(found, bundle=opened.path, first=first)


class Planner:
    """Simulates plans of one service under one load."""

    def __init__(self, service: Service, goal: Goal) -> None:
        self._service, self._goal = service, goal
        self.rate = goal.rate or 0.5 * (goal.instances or 1) / service.unit
        self.least = max(1, ceil(self.rate * service.query / (1 - goal.headroom)))
        """The fewest instances that the load and the headroom need."""

    def plans(self) -> Plans:
        """Try the policies with the given instances or, without, with as few as suffice.

        Raises UserError if the load takes more instances than can be simulated.
        """
        if self.least > MAX_INSTANCES:
            raise UserError(
                f"{self.rate:g} queries/s of {1e3 * self._service.query:.1f} ms take "
                f"{self.least:,} instances, more than the {MAX_INSTANCES:,} that are simulated; "
                "plan for a part of the load"
            )
        choices = [PolicyChoice(EqualResources.name)]
        choices += [PolicyChoice(Hedging.name, each, dispatch="latency-aware") for each in HEDGING]
        if self._service.stand_ins:
            choices.append(PolicyChoice(Adaptive.name).within(self._goal.differ))
        given = self._goal.instances
        plans = tuple(self._plan(each, given) if given else self._fewest(each) for each in choices)
        best, enough = _best(plans), None
        if best is None and given:
            enough = _best(map(self._fewest, choices))
        return Plans(self._service, self._goal, self.rate, plans, best, enough)

    def _fewest(self, choice: PolicyChoice) -> Plan:
        """Plan with the fewest instances that suffice, or else the most that are tried."""
        low, high = self.least, self.least
        most = min(MAX_INSTANCES, MAX_FACTOR * self.least + 2)
        plan = self._plan(choice, high)
        while plan.missed and high < most:
            low, high = high + 1, min(most, ceil(1.5 * high) + (high == 1))
            plan = self._plan(choice, high)
        while not plan.missed and low < high:
            middle = (low + high) // 2
            tried = self._plan(choice, middle)
            low, high = (middle + 1, high) if tried.missed else (low, middle)
            plan = plan if tried.missed else tried
        return plan

    def _plan(self, choice: PolicyChoice, instances: int) -> Plan:
        """Simulate a plan."""
        goal, service = self._goal, self._service
        options = replace(goal, rate=self.rate, instances=instances)
        queries = goal.queries or QUERIES
        outcome = Scenario.of(service, options, queries=queries, seed=goal.seed).outcome(choice)
        factors = {
            f"p99 {outcome.p99_ms:.1f} ms": outcome.p99_ms / (1e3 * (goal.p99 or inf)),
            f"p99.9 {outcome.p999_ms:.1f} ms": outcome.p999_ms / (1e3 * (goal.p999 or inf)),
            f"{outcome.idle:.0%} idle": (1 - outcome.idle) / (1 - goal.headroom),
            f"{1 - outcome.answered:.1%} without an answer": ANSWERED / outcome.answered,
        }
        missed = tuple(said for said, factor in factors.items() if factor > 1)
        agreement = goal.agreement if choice.has_budget else DEFAULT
        return Plan(
            choice, instances, outcome, missed, max(factors.values()), service.max_batch, agreement
        )


def _counted(instances: int) -> str:
    return "1 instance" if instances == 1 else f"{instances} instances"


def _best(plans: Iterable[Plan]) -> Plan | None:
    """Return the plan with the fewest instances, the least work and the lowest p99 of all that fit.

    Of plans that differ by no more than chance it is the simplest, which comes first.
    """
    fit = [plan for plan in plans if not plan.missed]
    if not fit:
        return None
    fewest = min(plan.instances for plan in fit)
    fit = [plan for plan in fit if plan.instances == fewest]
    cheapest = min(plan.outcome.busy_ms for plan in fit)
    fit = [plan for plan in fit if plan.outcome.busy_ms <= ALIKE * cheapest]
    lowest = min(plan.outcome.p99_ms for plan in fit)
    return next(plan for plan in fit if plan.outcome.p99_ms <= ALIKE * lowest)
