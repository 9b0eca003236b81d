"""One run of a latency experiment, real or simulated, and its result."""

import os
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from hashlib import sha256
from math import inf

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.arrivals import poisson_arrivals
from parity_models.codes import Code
from parity_models.emulation import Constant
from parity_models.errors import UserError
from parity_models.protection.scene import DISPATCH
from parity_models.roles import DEPLOYED, Source
from parity_models.scheduling import SchedulerConfig
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import StandIns
from parity_models.simulation import FAILED, SOURCES, Driver, Simulation, simulate
from parity_models_lab.latency.cores import Cores, DriverOnCores
from parity_models_lab.latency.link import DriverOnLinks
from parity_models_lab.latency.setting import SLOWED, Setting

SHARES = np.concatenate([np.linspace(0, 0.99, 100), 1 - np.geomspace(0.01, 1e-4, 60)])
"""The shares of queries whose quantiles of latency are kept where all of them matter."""

PERCENTILES = {"p50": "p50_ms", "p99": "p99_ms", "p99.9": "p999_ms"}
"""The fields of results, by percentile."""

SERVING, PER_UNIT = 0.77e-3, 0.47e-3
"""The seconds that a core of a machine with a `speed` computes for a query (by server and client)
and for a unit (by a worker), as measured in real trials without redundancy."""


class Mode(StrEnum):
    """Modes of trials."""

    REAL = "real"
    """Worker processes, a server and a load generator; service times are emulated by waiting."""
    SIMULATED = "simulated"
    """The scheduler alone, against imagined instances."""


class Overheads(msgspec.Struct, frozen=True):
    """The overheads of serving, in ms, that simulations add.

    `held_ms` is how much longer a unit holds its instance, `outside_ms` the time of an answer
    outside of queue and instance, as quantiles at SHARES. `serving_ms` and `unseen_ms` are computed
    for each query and `unit_ms` for each unit, where models compute: see `Cores`.
    """

    held_ms: float = 0.0
    outside_ms: tuple[float, ...] = ()
    serving_ms: float = 0.0
    unseen_ms: float = 0.0
    unit_ms: float = 0.0


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One run: `queries` that are counted, after `warm_up` that are not.

    Contention is real in real runs, with transfers through shaped links, which simulations imitate.
    """

    mode: Mode
    setting: Setting
    policy: PolicyChoice
    queries: int
    warm_up: int
    seed: int
    overheads: Overheads = Overheads()

    @property
    def key(self) -> str:
        """A name for the trial, by its content."""
        _, dispatch = self.policy.build(self.stand_ins)
        policy = self.policy.written_out() | {"dispatch": self.policy.dispatch or dispatch.name}
        content = msgspec.to_builtins(self) | {"policy": policy}
        return sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:24]

    @property
    def seconds(self) -> float:
        """The seconds during which queries arrive."""
        return self.setting.seconds(self.warm_up + self.queries)

    def arrivals(self) -> NDArray[np.float64]:
        """Return the times of arrival: (warm_up + queries,) seconds, in order."""
        rate, burst = self.setting.queries_per_second, self.setting.burst
        times = poisson_arrivals(rate, self.warm_up + self.queries, self.seed)
        return times if burst is None else burst.compress(times)

    @property
    def stand_ins(self) -> StandIns:
        """The bundle's stand-ins for the policy."""
        has, policy = self.setting.stand_ins, self.policy.policy
        coded, backed = "parity" in has or policy.needs_code, "backup" in has or policy.needs_backup
        code = Code(self.setting.code, (1,), (1,)) if coded else None
        return StandIns(code, backed)

    @property
    def cores(self) -> Cores | None:
        """The cores of a simulation, if models compute, or the processor has a speed."""
        setting, over = self.setting, self.overheads
        if setting.speed:
            quota = SLOWED * setting.speed if setting.speed < 1 else inf
            return Cores(SLOWED, SERVING, unit=PER_UNIT, waiting=not setting.computing, quota=quota)
        if not setting.computing:
            return None
        computed = (over.serving_ms / 1e3, over.unseen_ms / 1e3, over.unit_ms / 1e3)
        return Cores(len(os.sched_getaffinity(0)), *computed, hogs=setting.hogs)

    @property
    def roles(self) -> list[frozenset[str]]:
        """The roles of the policy's instances: all of the setting's, but for `none`."""
        policy, _ = self.policy.build(self.stand_ins)
        return policy.roles(self.setting.instances, self.setting.parity_instances)


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies in ms over answered queries. `gap_ms` is p99.9 - p50.

    `quantiles_ms` are those of SHARES. `sources` counts answers by source. `work` is how many units
    ran for each query, all models together; `busy_ms` how long instances were busy with them,
    `workers_ms` how long workers computed, `serving_ms` server and client, all for each query;
    `accuracy` is that of the answers; `send_delay_p99_ms` how late the load generator sent,
    `lag_ms` how long reports and timers waited for the server's process on average. None where the
    mode does not know.
    """

    p50_ms: float
    p99_ms: float
    p999_ms: float
    gap_ms: float
    quantiles_ms: tuple[float, ...]
    answered: int
    errors: int
    sources: dict[str, int]
    work: float | None = None
    busy_ms: float | None = None
    accuracy: float | None = None
    send_delay_p99_ms: float | None = None
    lag_ms: float | None = None
    workers_ms: float | None = None
    serving_ms: float | None = None

    def share(self, source: Source) -> float:
        """Return the share of answers from `source`."""
        return self.sources.get(source, 0) / self.answered


def result_of(latencies: NDArray[np.float64], errors: int, sources: dict[str, int]) -> TrialResult:
    """Sum up the `latencies` (n,) in seconds of answered queries.

    Raises UserError if there are none.
    """
    if not len(latencies):
        raise UserError("no query was answered, so there are no latencies: offer less load")
    ms = latencies * 1e3
    p50, p99, p999 = np.quantile(ms, [0.5, 0.99, 0.999]).tolist()
    return TrialResult(
        p50_ms=p50,
        p99_ms=p99,
        p999_ms=p999,
        gap_ms=p999 - p50,
        quantiles_ms=tuple(np.quantile(ms, SHARES).round(3).tolist()),
        answered=len(ms),
        errors=errors,
        sources=sources,
    )


def simulate_trial(trial: Trial) -> TrialResult:
    """Run a trial in the simulator."""
    setting, warm_up = trial.setting, trial.warm_up
    simulation = Simulation(
        trial.arrivals(),
        setting.instances,
        setting.parity_instances,
        {DEPLOYED: Constant(0.0)},
        faults=setting.faults(trial.seed, trial.seconds),
        overhead=DISPATCH + trial.overheads.held_ms / 1e3,
        nodes=setting.nodes or None,
        config=SchedulerConfig(max_batch=setting.max_batch),
        seed=trial.seed,
        warm_up=warm_up,
    )
    links, cores = setting.links(trial.seed), trial.cores
    driver: Callable[..., Driver] = partial(DriverOnLinks, links)
    if cores is not None:
        driver = partial(DriverOnCores, cores, links)
    result = simulate(simulation, *trial.policy.build(trial.stand_ins), driver=driver)
    sources = result.sources[warm_up:]
    answered = sources != FAILED
    latencies = result.latencies[warm_up:][answered]
    if outside := trial.overheads.outside_ms:
        shares = np.random.default_rng((trial.seed, 2)).random(len(latencies))
        latencies += np.interp(shares, SHARES, outside) / 1e3
    counts = {str(each): int(np.sum(sources == number)) for number, each in enumerate(SOURCES)}
    counted = {source: count for source, count in counts.items() if count}
    return msgspec.structs.replace(
        result_of(latencies, int(np.sum(~answered)), counted),
        work=sum(result.units.values()) / trial.queries,
        busy_ms=float(sum(result.busy.values())) / trial.queries * 1e3,
        lag_ms=result.lag * 1e3 if cores else None,
    )
