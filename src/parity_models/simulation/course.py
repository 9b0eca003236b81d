"""What a policy does to a load, summed up; and what all policies of one comparison meet."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.faults import Distribution, Exponential, FaultPlan, Shuffles, Uniform
from parity_models.scheduling import SchedulerConfig, Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import StandIns
from parity_models.simulation.cores import Cores
from parity_models.simulation.scenario import FAILED, SOURCES, Simulation
from parity_models.simulation.simulator import simulate

SPREAD = 0.05
"""The standard deviation of the logarithm of undisturbed run times."""

DISPATCH = 0.0004
"""Seconds that a unit takes besides its run: the engine's round trip."""

SHARES = np.concatenate([np.linspace(0, 0.99, 100), 1 - np.geomspace(0.01, 1e-4, 60)])
"""The shares of queries whose quantiles of latency are kept where all of them matter."""


def standard_contention(instances: int, seconds: float) -> FaultPlan:
    """Background transfers as in the paper's experiments, in units of a run of `seconds`.

    There is one for every three instances at all times, each over the links of two, for some 40
    runs; it delays a unit there by 0.8 runs on average (exponential). These are the disturbances
    of `parm simulate` for runs of 25 ms.
    """
    if instances < 2:
        return FaultPlan()
    transfer = Uniform(28 * seconds, 56 * seconds)
    delay = Exponential(0.8 * seconds)
    return FaultPlan(shuffles=Shuffles(max(1, round(instances / 3)), instances, transfer, delay))


@dataclass(frozen=True)
class Course:
    """What every policy of a comparison meets. Times in seconds.

    Queries arrive at the times `arrivals` (n,), of which the first `warm_up` do not count.
    `service` says how long a unit of each role takes; a role that it does not name takes as long
    as one of the deployed model. A unit has up to `max_batch` queries, and each after the first
    adds a share `further_rows` of that, by role. `overhead` comes to every unit. With `cores`
    instances share these, and times of service are seconds of a core. An answer takes
    some more time outside of queue and instance, of which `outside_ms` are the quantiles at SHARES;
    by default none.
    """

    arrivals: NDArray[np.float64]
    warm_up: int
    instances: int
    service: Mapping[str, Distribution]
    faults: FaultPlan
    overhead: float = DISPATCH
    seed: int = 0
    max_batch: int = 1
    further_rows: Mapping[str, float] = field(default_factory=dict)
    outside_ms: tuple[float, ...] = ()
    cores: Cores | None = None


def with_outside(
    latencies: NDArray[np.float64], outside_ms: tuple[float, ...], seed: int
) -> NDArray[np.float64]:
    """Latencies (n,) in seconds, each with a time more that is drawn from those with the quantiles
    `outside_ms` at SHARES; () adds nothing."""
    if not outside_ms:
        return latencies
    shares = np.random.default_rng((seed, 2)).random(len(latencies))
    return np.asarray(latencies + np.interp(shares, SHARES, outside_ms) / 1e3)


def added_by_row(one: float, several: float, rows: int) -> float:
    """The share of a unit's time that each of its rows after the first adds, where a unit of one
    takes `one` and a unit of so many `rows`, 2 or more, takes `several`."""
    return max(0.0, (several / one - 1) / (rows - 1))


@dataclass(frozen=True)
class Outcome:
    """What a policy did. Latencies are those of answered queries, in ms.

    `answered` is the share of queries that were, `stood_in` the share that a stand-in answered.
    `units` are how many ran, by role, with so many `rows` in them. `busy_ms` is how long instances
    were busy for each query, `spare` the share of their time for which they were idle.
    """

    p50_ms: float
    p99_ms: float
    p999_ms: float
    answered: float
    stood_in: float
    units: Mapping[str, int]
    rows: Mapping[str, int]
    busy_ms: float
    spare: float


def outcome_of(
    course: Course,
    choice: PolicyChoice,
    stand_ins: StandIns,
    coverage: Mapping[str, float] | None = None,
) -> Outcome:
    """Simulate a policy with the stand-ins that a bundle has. One whose source has a
    `coverage` may answer this share of the queries. Raises UserError if no query is answered."""
    simulation = Simulation(
        course.arrivals,
        course.instances,
        0,
        course.service,
        faults=msgspec.structs.replace(course.faults, coverage=1.0, coverages=dict(coverage or {})),
        cores=course.cores,
        overhead=course.overhead,
        config=SchedulerConfig(max_batch=course.max_batch),
        seed=course.seed,
        warm_up=course.warm_up,
        further_rows=course.further_rows,
    )
    result = simulate(simulation, *choice.build(stand_ins))
    sources, latencies = result.sources[course.warm_up :], result.latencies[course.warm_up :]
    answered = sources != FAILED
    if not answered.any():
        raise UserError(
            "no query was answered in the simulation: offer less --load, or other --contention"
        )
    ms = with_outside(latencies[answered], course.outside_ms, course.seed) * 1e3
    p50, p99, p999 = np.quantile(ms, (0.5, 0.99, 0.999)).tolist()
    busy = sum(result.busy.values())
    span = float(course.arrivals[-1] - course.arrivals[course.warm_up])
    return Outcome(
        p50,
        p99,
        p999,
        float(answered.mean()),
        float((answered & (sources != SOURCES.index(Source.MODEL))).mean()),
        result.units,
        result.rows,
        1e3 * busy / len(sources),
        max(0.0, 1 - busy / (course.instances * span)) if span > 0 else 0.0,
    )
