"""Plans, each a policy with so many instances and what it does to a load; and which to take."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.faults import FaultPlan
from parity_models.scheduling import BACKUPS, DEPLOYED
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, EqualResources, Hedging, StandIns
from parity_models.simulation.arrivals import poisson_arrivals
from parity_models.simulation.course import Course, Outcome, outcome_of, standard_contention
from parity_models.simulation.recording import Recording
from parity_models.sizing.goal import Goal
from parity_models.sizing.served import Served

WARM_UP = 10
"""One query of so many comes before those that count."""

LESS_URGENT = 5.0
"""By how much the urgency is divided where redundant work takes too much of what is to be spare."""

HEDGING: tuple[dict[str, float], ...] = ({}, {"hedge_quantile": 0.8, "hedge_budget": 0.3})
"""The options with which hedging is tried: the defaults, which are the best of those measured where
instances have little to spare, and the best ones elsewhere (lab/results/latency/late.json)."""

BATCHED = 1.05
"""Queries of a recorded unit, on average, from which on it ran batches."""

MOST_TIMES, MOST_INSTANCES = 4, 1000
"""Instances at most that are tried: so many times what the load takes, and so many."""

ANSWERED = 0.999
"""The share of queries that have to be answered."""

ALIKE = 0.02
"""Busy times of which one is at most this share above the other differ by chance."""

Told = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """A policy with so many instances, and what it does.

    `stand_in` names what answers besides the model. `agreement` is the share of all answers that
    say what the model says; None: nobody knows. `missed` says in words what of the goal is not met.
    Units have up to `max_batch` queries.
    """

    policy: PolicyChoice
    stand_in: str
    instances: int
    outcome: Outcome
    agreement: float | None
    missed: tuple[str, ...]
    max_batch: int = 1

    @property
    def name(self) -> str:
        """The policy, with those of its options that are not the defaults."""
        given = [f"{_spelt(name)} {value:g}" for name, value in self.policy.options.items()]
        return ", ".join([self.policy.name, *given])

    @property
    def flags(self) -> str:
        """What serves so: the options of parm serve."""
        given = f"--policy {self.policy.name} --instances {self.instances} --parity-instances 0"
        for name, value in self.policy.options.items():
            given += f" --{_spelt(name)} {value:g}"
        given += f" --max-batch {self.max_batch}"
        return given + (
            "" if self.policy.dispatch is None else f" --dispatch {self.policy.dispatch}"
        )


@dataclass(frozen=True)
class Sized:
    """What came of it: all `plans` that were tried, and the one to take; None: none fits."""

    plans: list[Plan]
    best: Plan | None
    rate: float


class Sizing:
    """Simulates plans of one service under one load."""

    def __init__(self, served: Served, goal: Goal, recording: Recording | None) -> None:
        if goal.rate is None and recording is None:
            raise UserError("there is no load to size for; give --rate, or --recorded")
        if recording is not None and recording.rows > BATCHED and served.max_batch == 1:
            raise UserError(
                f"units of the recorded server had {recording.rows:.1f} queries on average, and "
                "the plan is for one in a unit; give --max-batch as that server has it"
            )
        self._served = served
        self._goal = goal
        self._recording = recording
        self._asked_for = goal.plan()
        self.rate = goal.rate or (recording.rate if recording else 0.0)
        self._tried: dict[tuple[str, str, int], Plan] = {}

    @cached_property
    def _arrivals(self) -> NDArray[np.float64]:
        goal = self._goal
        count = goal.queries + goal.queries // WARM_UP
        if self._recording is not None:
            return self._recording.arrivals(count, goal.seed, self.rate)
        return poisson_arrivals(self.rate, count, goal.seed)

    @property
    def least(self) -> int:
        """Instances without which the load and what is to be spare cannot be had."""
        return max(1, ceil(self.rate * self._served.query / (1 - self._goal.spare)))

    def size(self, told: Told = lambda text: None) -> Sized:
        """Try the policies, with as many instances as there are, or as few as will do.

        `told` hears what is tried. Raises UserError if no query is answered, or too many instances
        are needed to simulate.
        """
        if self.least > MOST_INSTANCES:
            raise UserError(
                f"{self.rate:g} queries/s of {1e3 * self._served.query:.1f} ms take "
                f"{self.least:,} instances, more than the {MOST_INSTANCES:,} that are simulated; "
                "plan for a part of the load"
            )
        if self._goal.instances is not None:
            plans = [self._plan(each, self._goal.instances, told) for each in self._choices()]
            plans += self._less_urgent(plans, told)
        else:
            plans = [self._fewest(each, told) for each in self._choices()]
        return Sized(plans, _best(plans), self.rate)

    def enough(self, told: Told = lambda text: None) -> Plan | None:
        """The plan with the fewest instances that fits, however many these are; None: none does."""
        plans = [self._fewest(each, told) for each in self._choices()]
        return _best([plan for plan in plans if not plan.missed])

    def _choices(self) -> list[PolicyChoice]:
        choices = [
            PolicyChoice(EqualResources.name),
            *(PolicyChoice(Hedging.name, each, dispatch="latency-aware") for each in HEDGING),
        ]
        return choices + [PolicyChoice(Adaptive.name)] * bool(self._served.stand_ins)

    def _fewest(self, choice: PolicyChoice, told: Told) -> Plan:
        """With the fewest instances that will do, or else the most that are tried."""
        low, high = self.least, self.least
        most = min(MOST_INSTANCES, MOST_TIMES * self.least + 2)
        plan = self._plan(choice, high, told)
        while plan.missed and high < most:
            low, high = high + 1, min(most, ceil(1.5 * high) + (high == 1))
            plan = self._plan(choice, high, told)
        if plan.missed:
            return plan
        while low < high:
            middle = (low + high) // 2
            tried = self._plan(choice, middle, told)
            if tried.missed:
                low = middle + 1
            else:
                high, plan = middle, tried
        return plan

    def _less_urgent(self, plans: Iterable[Plan], told: Told) -> list[Plan]:
        """A policy with an urgency asks less often where it leaves too little spare."""
        found = []
        for plan in plans:
            urgency = plan.policy.written_out().get("urgency")
            if urgency is not None and plan.outcome.spare < self._goal.spare:
                less = {**plan.policy.options, "urgency": urgency / LESS_URGENT}
                choice = replace(plan.policy, options=less)
                found.append(self._plan(choice, plan.instances, told))
        return found

    def _plan(self, choice: PolicyChoice, instances: int, told: Told) -> Plan:
        key = (choice.name, str(choice.options), instances)
        if key not in self._tried:
            told(f"{choice.name}, {instances} instances")
            self._tried[key] = self._simulated(choice, instances)
        return self._tried[key]

    def _simulated(self, choice: PolicyChoice, instances: int) -> Plan:
        served, goal = self._served, self._goal
        asks = served.stand_ins if choice.policy.needs_stand_in else StandIns()
        course = Course(
            self._arrivals,
            goal.queries // WARM_UP,
            instances,
            served.service,
            self._faults(instances),
            served.overhead,
            goal.seed,
            served.max_batch,
            served.further_rows,
        )
        outcome = outcome_of(course, choice, asks, served.coverage)
        agreement: float | None = 1.0
        if asks:
            known = served.agreement
            agreement = None if known is None else 1 - outcome.stood_in * (1 - known)
        missed = _missed(goal, outcome)
        return Plan(choice, _named(asks), instances, outcome, agreement, missed, served.max_batch)

    def _faults(self, instances: int) -> FaultPlan:
        plan = self._asked_for
        if plan is None and self._recording is not None:
            plan = self._recording.contention
        if plan is None:
            plan = standard_contention(instances, self._served.unit)
        else:
            plan.check(instances)
        return msgspec.structs.replace(plan, seed=self._goal.seed)


def _spelt(option: str) -> str:
    return option.replace("_", "-")


def _named(asks: StandIns) -> str:
    return " and ".join([*["parity model"] * (asks.code is not None), *asks.backups]) or "none"


def _missed(goal: Goal, outcome: Outcome) -> tuple[str, ...]:
    reached = (outcome.p50_ms, outcome.p99_ms, outcome.p999_ms)
    limits = zip(("p50", "p99", "p99.9"), reached, goal.limits_ms(), strict=True)
    missed = [f"{name} {ms:.1f} ms" for name, ms, limit in limits if ms > limit]
    if outcome.spare < goal.spare:
        missed.append(f"{outcome.spare:.0%} spare")
    if outcome.answered < ANSWERED:
        missed.append(f"{1 - outcome.answered:.1%} without an answer")
    return tuple(missed)


def _best(plans: Iterable[Plan]) -> Plan | None:
    """Of those that fit: the fewest instances, then the least work, then the lowest p99."""
    fit = [plan for plan in plans if not plan.missed]
    if not fit:
        return None
    fewest = min(plan.instances for plan in fit)
    fit = [plan for plan in fit if plan.instances == fewest]
    cheapest = min(plan.outcome.busy_ms for plan in fit)
    alike = [plan for plan in fit if plan.outcome.busy_ms <= (1 + ALIKE) * cheapest]
    return min(alike, key=lambda plan: plan.outcome.p99_ms)


def nearest(plans: Iterable[Plan], goal: Goal) -> Plan:
    """Of plans that do not fit, the one that is above the goal by the smallest factor."""

    def beyond(plan: Plan) -> float:
        reached = (plan.outcome.p50_ms, plan.outcome.p99_ms, plan.outcome.p999_ms)
        late = [ms / limit for ms, limit in zip(reached, goal.limits_ms(), strict=True)]
        used = (1 - plan.outcome.spare) / (1 - goal.spare)
        return max(*late, used, ANSWERED / max(1e-9, plan.outcome.answered))

    return min(plans, key=beyond)


def times_of(served: Served) -> Mapping[str, float]:
    """Milliseconds of a unit by role, undisturbed: the deployed model's first."""
    order = sorted(served.seconds, key=lambda role: (role != DEPLOYED, role in BACKUPS, role))
    return {role: 1e3 * served.seconds[role] for role in order}
