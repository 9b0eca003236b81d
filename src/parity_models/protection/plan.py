"""A policy and a number of instances for a goal and a load, by simulation: `plan`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from parity_models.errors import UserError
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.options import gather
from parity_models.printed import Printed
from parity_models.protection.options import Goal
from parity_models.protection.scene import (
    Outcome,
    Scene,
    Service,
    contention_of,
    recording_of,
    scene_of,
    service_for,
)
from parity_models.roles import BACKUPS, DEPLOYED
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, EqualResources, Hedging
from parity_models.simulation.recording import Recording

QUERIES = 20_000
"""Queries of one simulation, by default."""

LESS_URGENT = 5.0
"""By how much the urgency is divided where redundant work leaves too little headroom."""

HEDGING: tuple[dict[str, float], ...] = ({}, {"hedge_quantile": 0.8, "hedge_budget": 0.3})
"""The options with which hedging is tried: the defaults, which are the best of those measured where
instances have little to spare, and the best ones elsewhere."""

MOST_TIMES, MOST_INSTANCES = 4, 1000
"""Instances at most that are tried: so many times what the load takes, and so many."""

ANSWERED = 0.999
"""The share of queries that have to be answered."""

ALIKE = 1.05
"""Two p99, or two busy times, of which one is at most so many times the other differ by chance."""

OnTried = Callable[[str], None]
"""Called with what is simulated next."""


@dataclass(frozen=True)
class Plan:
    """A policy with so many instances, and its outcome.

    `stand_in` names what answers besides the model. `agreement` is the share of all answers that
    are the model's; None: unknown. `missed` says what of the goal is not met.
    """

    policy: PolicyChoice
    stand_in: str
    instances: int
    outcome: Outcome
    agreement: float | None
    missed: tuple[str, ...]
    max_batch: int

    @property
    def name(self) -> str:
        """The policy, with those of its options that are not the defaults."""
        return str(self.policy)

    @property
    def flags(self) -> str:
        """The options of parm serve that serve so."""
        dispatch = self.policy.dispatch
        return (
            f"--policy {self.name} --instances {self.instances} --max-batch {self.max_batch}"
            f"{'' if dispatch is None else f' --dispatch {dispatch}'}"
        )


@dataclass(frozen=True)
class Plans(Printed):
    """All `plans` that were tried for a goal, and the `best` one that fits; None: none fits.

    `enough` is the plan with the fewest instances that fits, where the instances that there are
    do not do.
    """

    service: Service
    goal: Goal
    rate: float
    plans: tuple[Plan, ...]
    best: Plan | None
    enough: Plan | None = None
    bundle: Path | None = None
    recording: Recording | None = None

    @property
    def nearest(self) -> Plan:
        """The plan that is above the goal by the smallest factor."""

        def beyond(plan: Plan) -> float:
            found = plan.outcome
            reached = (found.p50_ms, found.p99_ms, found.p999_ms)
            late = [ms / limit for ms, limit in zip(reached, self.goal.limits_ms, strict=True)]
            used = (1 - found.idle) / (1 - self.goal.headroom)
            return max(*late, used, ANSWERED / max(1e-9, found.answered))

        return min(self.plans, key=beyond)

    @property
    def advice(self) -> str:
        """The recommendation, or the nearest plan where none fits."""
        if self.best is None:
            near = self.nearest
            said = (
                f"no plan fits: the nearest is {near.name} with {_counted(near.instances)}, which "
                f"has {', '.join(near.missed)}"
            )
            if self.enough is not None:
                return f"{said}; {self.enough.name} fits with {_counted(self.enough.instances)}"
            return f"{said}; give it more time, a faster model, or a stand-in"
        best, found = self.best, self.best.outcome
        said = (
            f"Take {best.name} with {_counted(best.instances)}: p50 {found.p50_ms:.1f}, p99 "
            f"{found.p99_ms:.1f}, p99.9 {found.p999_ms:.1f} ms; {found.busy_ms:.1f} ms of an "
            f"instance for each query, {found.idle:.0%} idle."
        )
        if best.stand_in == "none" and self.service.stand_ins:
            said += "\nThe goal is met without a stand-in."
        return said + f"\nServe it with: parm serve {self.bundle or 'BUNDLE'} {best.flags}"

    @property
    def parts(self) -> Sequence[RenderableType]:
        """The times that were simulated, a table of plans, and the advice."""
        seconds = self.service.seconds
        order = sorted(seconds, key=lambda role: (role != DEPLOYED, role in BACKUPS, role))
        times = ", ".join(f"{role} {1e3 * seconds[role]:.2f} ms" for role in order)
        said = [f"A unit takes: {times}. Load: {self.rate:.4g} queries/s."]
        if self.service.max_batch > 1:
            said.append(
                f"Each further query in a unit, of up to {self.service.max_batch}, adds "
                f"{self.service.added.get(DEPLOYED, 0.0):.0%} to the time of the model."
            )
        if (recording := self.recording) is not None:
            said.append(
                f"The recorded server had p50 {recording.p50_ms:.1f}, p99 {recording.p99_ms:.1f}, "
                f"p99.9 {recording.p999_ms:.1f} ms at {recording.rate:.4g} queries/s, with "
                f"{recording.instances} instances."
            )
        return [*said, self._table(), self.advice]

    def _table(self) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD,
            padding=0,
            caption="simulated; times in ms",
            caption_justify="right",
        )
        table.add_column("policy", overflow="fold")
        table.add_column("stand-in", overflow="fold")
        headings = ("inst.", "p50", "p99", "p99.9", "busy a\nquery", "idle", "agrees", "stood\nin")
        for heading in (*headings, "copies"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("misses", overflow="fold")
        for plan in self.plans:
            found = plan.outcome
            table.add_row(
                plan.name,
                plan.stand_in,
                str(plan.instances),
                *(f"{ms:.1f}" for ms in (found.p50_ms, found.p99_ms, found.p999_ms)),
                f"{found.busy_ms:.1f}",
                f"{found.idle:.0%}",
                "?" if plan.agreement is None else f"{plan.agreement:.1%}",
                f"{found.stood_in:.1%}",
                f"{found.copied:.1%}",
                ", ".join(plan.missed),
            )
        return table


def plan(
    bundle: Bundle | Path | str | None = None,
    /,
    *,
    on_tried: OnTried = lambda text: None,
    options: Goal | None = None,
    **given: Any,
) -> Plans:
    """Find the policy and the number of instances that serve a load within a goal.

    For example, of numbers alone: plan(service_time=0.02, rate=200, p99=0.05). Policies are
    simulated by the scheduler that serves, with the times of the bundle's models, of numbers, or of
    a recorded server. Without `instances`, as few as will do are looked for.

    Args:
        bundle: The bundle to be served, or its folder. Without one, give `service_time`; with a
            `backup_time`, plans with a backup are tried, too.
        on_tried: Called with what is simulated next.
        options: All of Goal at once, in place of some by name.
        **given: Fields of Goal: limits, workload, cluster and service; times in seconds.

    Returns:
        All plans that were tried, and the one to take. They print as a table.

    Raises:
        UserError: For options out of range, where there is no rate, if no query is answered, or
            more instances are needed than can be simulated.
    """
    goal = gather(Goal, options, given)
    if goal.rate is None and goal.recorded is None and goal.arrivals is None:
        raise UserError("there is no load to plan for; give --rate, or --recorded")
    opened = bundle if bundle is None or isinstance(bundle, Bundle) else open_bundle(bundle)
    recording = recording_of(goal)
    service = service_for(opened, goal, None, recording)
    return Planner(service, goal, recording, on_tried).plans(
        None if opened is None else opened.path
    )


class Planner:
    """Simulates plans of one service under one load."""

    def __init__(
        self,
        service: Service,
        goal: Goal,
        recording: Recording | None = None,
        on_tried: OnTried = lambda text: None,
    ) -> None:
        self._service = service
        self._goal = goal
        self._recording = recording
        self._on_tried = on_tried
        few = replace(goal, instances=goal.instances or 1, contention=None)
        self._scene = scene_of(service, few, few, queries=QUERIES, recording=recording)
        recorded = None if recording is None else recording.rate
        self.rate = goal.rate or recorded or self._scene.rate
        self._tried: dict[tuple[str, str, int], Plan] = {}

    @property
    def least(self) -> int:
        """The instances that the load and the headroom need at least."""
        return max(1, ceil(self.rate * self._service.query / (1 - self._goal.headroom)))

    def plans(self, bundle: Path | None = None) -> Plans:
        """Try the policies, with as many instances as there are, or as few as will do."""
        if self.least > MOST_INSTANCES:
            raise UserError(
                f"{self.rate:g} queries/s of {1e3 * self._service.query:.1f} ms take "
                f"{self.least:,} instances, more than the {MOST_INSTANCES:,} that are simulated; "
                "plan for a part of the load"
            )
        instances, enough = self._goal.instances, None
        if instances is None:
            plans = [self._fewest(each) for each in self._choices()]
            best = _best(plans)
        else:
            plans = [self._plan(each, instances) for each in self._choices()]
            plans += self._less_urgent(plans)
            best = _best(plans)
            if best is None:
                enough = _best([self._fewest(each) for each in self._choices()])
        return Plans(
            self._service,
            self._goal,
            self.rate,
            tuple(plans),
            best,
            enough,
            bundle,
            self._recording,
        )

    def _choices(self) -> list[PolicyChoice]:
        """The policies to try, the simplest first."""
        choices = [
            PolicyChoice(EqualResources.name),
            *(PolicyChoice(Hedging.name, each, dispatch="latency-aware") for each in HEDGING),
        ]
        return choices + [PolicyChoice(Adaptive.name)] * bool(self._service.stand_ins)

    def _fewest(self, choice: PolicyChoice) -> Plan:
        """Plan with the fewest instances that will do, or else the most that are tried."""
        low, high = self.least, self.least
        most = min(MOST_INSTANCES, MOST_TIMES * self.least + 2)
        plan = self._plan(choice, high)
        while plan.missed and high < most:
            low, high = high + 1, min(most, ceil(1.5 * high) + (high == 1))
            plan = self._plan(choice, high)
        if plan.missed:
            return plan
        while low < high:
            middle = (low + high) // 2
            tried = self._plan(choice, middle)
            if tried.missed:
                low = middle + 1
            else:
                high, plan = middle, tried
        return plan

    def _less_urgent(self, plans: Iterable[Plan]) -> list[Plan]:
        """A policy with an urgency asks less often where it leaves too little headroom."""
        found = []
        for plan in plans:
            urgency = plan.policy.written_out().get("urgency")
            if urgency is not None and plan.outcome.idle < self._goal.headroom:
                less = {**plan.policy.options, "urgency": urgency / LESS_URGENT}
                found.append(self._plan(replace(plan.policy, options=less), plan.instances))
        return found

    def _plan(self, choice: PolicyChoice, instances: int) -> Plan:
        key = (choice.name, str(choice.options), instances)
        if key not in self._tried:
            self._on_tried(f"{choice.name}, {instances} instances")
            self._tried[key] = self._simulated(choice, instances)
        return self._tried[key]

    def _simulated(self, choice: PolicyChoice, instances: int) -> Plan:
        service, goal = self._service, self._goal
        scene: Scene = replace(
            self._scene,
            instances=instances,
            contention=contention_of(goal, service, instances, self._recording),
        )
        outcome = scene.outcome(choice)
        stand_in, agreement = "none", 1.0 if not choice.policy.needs_stand_in else None
        if choice.policy.needs_stand_in:
            stand_ins = service.stand_ins
            parity = ["parity model"] * (stand_ins.code is not None)
            stand_in = " and ".join([*parity, *stand_ins.backups])
            if service.agreement is not None:
                agreement = 1 - outcome.stood_in * (1 - service.agreement)
        return Plan(
            choice,
            stand_in,
            instances,
            outcome,
            agreement,
            _missed(goal, outcome),
            service.max_batch,
        )


def _counted(instances: int) -> str:
    return "1 instance" if instances == 1 else f"{instances} instances"


def _missed(goal: Goal, outcome: Outcome) -> tuple[str, ...]:
    reached = (outcome.p50_ms, outcome.p99_ms, outcome.p999_ms)
    limits = zip(("p50", "p99", "p99.9"), reached, goal.limits_ms, strict=True)
    missed = [f"{name} {ms:.1f} ms" for name, ms, limit in limits if ms > limit]
    if outcome.idle < goal.headroom:
        missed.append(f"{outcome.idle:.0%} idle")
    if outcome.answered < ANSWERED:
        missed.append(f"{1 - outcome.answered:.1%} without an answer")
    return tuple(missed)


def _best(plans: Iterable[Plan]) -> Plan | None:
    """Of those that fit: the fewest instances, then the least work, then the lowest p99.

    Where these differ by no more than chance, it is the simplest, which comes first.
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
