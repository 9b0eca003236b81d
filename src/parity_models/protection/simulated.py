"""What stand-ins would do to the tail and to the work, under the user's load: simulated.

The scheduler that serves is driven by `simulation`, with the times that models took here, in
batches as a server has them, and what serving them took besides, where that is known. Work is how
long all units would take undisturbed, and extra work what is more of it than without redundancy, in
runs of the deployed model for each query; it does not depend on what contention does to either.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from parity_models.codes import Code
from parity_models.faults import FaultPlan, LogNormal
from parity_models.protection.finalists import Finalist
from parity_models.protection.in_place import InPlace
from parity_models.protection.wishes import Wishes
from parity_models.scheduling import BACKUP, BACKUPS, DEPLOYED, parity_role
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Adaptive, EqualResources, Hedging, StandIns
from parity_models.simulation.arrivals import poisson_arrivals
from parity_models.simulation.course import (
    DISPATCH,
    SPREAD,
    Course,
    Outcome,
    added_by_row,
    outcome_of,
    standard_contention,
)

LEAST_QUERIES, MOST_QUERIES = 3_000, 40_000
"""Queries of one simulation."""
WARM_UP = 10
"""One query of so many comes before those that count."""

LESS_URGENT = 5.0
"""By how much the urgency is divided to keep within the extra work."""

TRIES = 3


@dataclass(frozen=True)
class Plan:
    """A policy with `finalists` for stand-ins, or with none, and what it did in the simulation.

    Of two finalists the second is a backup: where the first is one, a slower and better one, else
    the one that is used in place of a slot of the first.

    Latencies are those of answered queries, in ms; `answered` is
    the share that were, `stood_in` the share that a stand-in answered. `extra_work` is in runs of
    the deployed model for each query.
    """

    name: str
    finalists: tuple[Finalist, ...]
    policy: PolicyChoice
    p50_ms: float
    p99_ms: float
    p999_ms: float
    answered: float
    stood_in: float
    extra_work: float

    @property
    def urgency(self) -> float | None:
        """The option of the policy, where it is not the default."""
        found: float | None = self.policy.options.get("urgency")
        return found


@dataclass(frozen=True)
class Scene:
    """What all simulations of a search meet.

    `rate` queries a second arrive at so many `instances`, in units of up to `max_batch`, which
    meet the `contention`. `warm_up` of them come before the `queries` that count; when they arrive
    follows from `seed`.
    """

    rate: float
    instances: int
    max_batch: int
    contention: FaultPlan
    seed: int
    queries: int
    warm_up: int


Times = Mapping[int, float]
"""Milliseconds of a run by batch size; that of one query is among them."""


def unit_seconds(deployed: Times) -> float:
    """How long a unit of one query takes an instance."""
    return deployed[1] / 1e3 + DISPATCH


def offered(wishes: Wishes, deployed: Times) -> float:
    """Queries a second that are wished, for a model that runs so long."""
    return wishes.rate or wishes.load * wishes.instances / unit_seconds(deployed)


class Simulations:
    """Simulations of one deployed model under one load; `deployed` is how long it runs, `served`
    what it takes besides where it is served, if that is known.

    Units have up to `max_batch` queries, a batch that there is a time for. `seconds` is the time
    that all of them may take, `plans` how many there will be.
    """

    def __init__(
        self,
        wishes: Wishes,
        deployed: Times,
        seconds: float,
        plans: int,
        max_batch: int = 1,
        served: InPlace | None = None,
    ) -> None:
        self._wishes = wishes
        self._deployed = deployed
        self._max_batch = max_batch
        self._served = served
        plan = wishes.plan() or standard_contention(wishes.instances, unit_seconds(deployed))
        self._faults = msgspec.structs.replace(plan, seed=wishes.seed)
        self.rate = offered(wishes, deployed)
        """Queries a second."""
        self.queries = LEAST_QUERIES
        self._usual = 0.0  # the work without redundancy
        self.without = self._calibrated(seconds, plans)

    @property
    def scene(self) -> Scene:
        """What all of them meet."""
        return Scene(
            self.rate,
            self._wishes.instances,
            self._max_batch,
            self._faults,
            self._wishes.seed,
            self.queries,
            self.queries // WARM_UP,
        )

    def _calibrated(self, seconds: float, plans: int) -> Plan:
        """The plan without a stand-in, of as many queries as there is time for."""
        began = time.monotonic()
        first = self._without()
        took = max(1e-3, time.monotonic() - began)
        # Adaptive takes some three times as long as this.
        affordable = int(LEAST_QUERIES * seconds / (3 * took * max(1, plans)))
        self.queries = min(MOST_QUERIES, max(LEAST_QUERIES, affordable))
        if self.queries == LEAST_QUERIES:
            return first
        return self._without()

    def _without(self) -> Plan:
        self._usual = 0.0
        plan = self._run("no redundancy", (), PolicyChoice(EqualResources.name), StandIns(), {})
        self._usual = plan.extra_work
        return replace(plan, extra_work=0.0)

    def hedging(self) -> Plan:
        """Copies of what is late: what a stand-in has to beat."""
        choice = PolicyChoice(Hedging.name, dispatch="latency-aware")
        return self._run("hedging", (), choice, StandIns(), {})

    def with_stand_ins(self, *finalists: Finalist) -> list[Plan]:
        """Parity models, a backup, both in this order, or two backups, the faster first, asked for
        late queries: with the policy's urgency, and with ever less as long as the extra work is
        more than is wanted."""
        plans = [self._adaptive(finalists, None)]
        urgency = Adaptive.Options().urgency
        while plans[-1].extra_work > self._wishes.extra_work and len(plans) <= TRIES:
            urgency /= LESS_URGENT
            plans.append(self._adaptive(finalists, urgency))
        return plans

    def _adaptive(self, finalists: tuple[Finalist, ...], urgency: float | None) -> Plan:
        options = {} if urgency is None else {"urgency": urgency}
        choice = PolicyChoice(Adaptive.name, options)
        code: Code | None = None
        service: dict[str, Times] = {}
        backups = [each for each in finalists if each.candidate.code is None]
        service |= {role: each.ms for role, each in zip(BACKUPS, backups, strict=False)}
        for each in finalists:
            spec = each.candidate.code
            if spec is None:
                continue
            code = Code(spec, (1,), (1,))
            service |= {parity_role(j): each.ms for j in range(spec.r)}
            # A backup of its own rather than a slot of the parity model.
            if not backups and each.slot is not None and each.slot_ms is not None:
                service[BACKUP] = each.slot_ms
        has = StandIns(code, tuple(role for role in BACKUPS if role in service))
        return self._run(together(finalists), finalists, choice, has, service)

    def _run(
        self,
        name: str,
        finalists: tuple[Finalist, ...],
        choice: PolicyChoice,
        stand_ins: StandIns,
        service: Mapping[str, Times],
    ) -> Plan:
        scene, times = self.scene, {DEPLOYED: self._deployed, **service}
        course = Course(
            poisson_arrivals(scene.rate, scene.queries + scene.warm_up, scene.seed),
            scene.warm_up,
            scene.instances,
            {role: LogNormal(ms[1] / 1e3, SPREAD) for role, ms in times.items()},
            scene.contention,
            DISPATCH if self._served is None else self._served.held / 1e3,
            scene.seed,
            scene.max_batch,
            {role: self._added_by_row(ms) for role, ms in times.items()},
            () if self._served is None else self._served.outside,
            None if self._served is None else self._served.shared,
        )
        found = outcome_of(course, choice, stand_ins, coverage_of(finalists))
        work = self._work(found, times) / (scene.queries * self._deployed[1])
        return Plan(
            name,
            finalists,
            choice,
            found.p50_ms,
            found.p99_ms,
            found.p999_ms,
            found.answered,
            found.stood_in,
            work - self._usual,
        )

    def _added_by_row(self, ms: Times) -> float:
        batch = self._max_batch
        return 0.0 if batch == 1 else added_by_row(ms[1], ms[batch], batch)

    def _work(self, found: Outcome, times: Mapping[str, Times]) -> float:
        """How many milliseconds all units would take undisturbed."""
        total = 0.0
        for role, units in found.units.items():
            ms = times.get(role, self._deployed)
            further = found.rows[role] - units
            total += ms[1] * (units + self._added_by_row(ms) * further)
        return total


def together(finalists: Sequence[Finalist]) -> str:
    """What they are called in one."""
    return " + ".join(each.name for each in finalists)


def coverage_of(finalists: Sequence[Finalist]) -> dict[str, float]:
    """The share of queries that each stand-in of a bundle with these may answer, by source."""
    roles, found = iter(BACKUPS), dict[str, float]()
    for each in sorted(finalists, key=lambda one: one.candidate.code is None):
        if each.candidate.code is None:  # rather than a slot of a parity model
            found[next(roles)] = each.covered
        else:
            found |= {str(name): share for name, share in each.coverage.items()}
    return found
