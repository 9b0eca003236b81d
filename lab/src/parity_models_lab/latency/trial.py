"""One run of a latency figure, real or simulated, and its result."""

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.emulation import Constant, FaultPlan
from parity_models.errors import UserError
from parity_models.protection.scene import DISPATCH
from parity_models.roles import DEPLOYED, Source
from parity_models.scheduling import SchedulerConfig
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import StandIns
from parity_models.simulation import FAILED, SOURCES, Driver, Simulation, simulate
from parity_models_lab.latency.cores import Cores, DriverOnCores
from parity_models_lab.latency.link import DriverOnLinks
from parity_models_lab.latency.setting import CORES, Setting

SHARES = np.concatenate([np.linspace(0, 0.99, 100), 1 - np.geomspace(0.01, 1e-4, 60)])
"""The shares of queries whose quantiles of latency are kept where all of them matter."""

PERCENTILES = {"p50": "p50_ms", "p99": "p99_ms", "p99.9": "p999_ms"}
"""The fields of results, by percentile."""

Mode = Literal["real", "simulated"]
"""Worker processes, a server and a load generator, with emulated service times; or the scheduler
alone, against imagined instances."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One run: `queries` that are counted, after `warm_up` that are not.

    Contention is real in real runs, with transfers through shaped links, which simulations imitate.
    The overheads of serving are for simulations: `held_ms` is how much longer a unit holds its
    instance, `outside_ms` the time of an answer outside of queue and instance, as quantiles at
    SHARES.
    """

    mode: Mode
    setting: Setting
    policy: PolicyChoice
    queries: int
    warm_up: int
    seed: int
    held_ms: float = 0.0
    outside_ms: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        """A name for the trial, by its content."""
        policy = self.policy.written_out() | {"dispatch": self.policy.rule}
        content = msgspec.to_builtins(self) | {"policy": policy}
        return sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:24]

    def arrivals(self) -> NDArray[np.float64]:
        """Return the times of arrival: (warm_up + queries,) seconds, in order."""
        return self.setting.arrivals(self.warm_up + self.queries, self.seed)

    def plan(self, workers: int) -> FaultPlan:
        """Return the faults of so many workers."""
        return self.setting.plan(self.seed, self.warm_up + self.queries, workers)

    @property
    def stand_ins(self) -> StandIns:
        """The bundle's stand-ins that the policy uses."""
        has, policy = self.setting.stand_ins, self.policy.policy
        code = policy.needs_code or (policy.needs_stand_in and "parity" in has)
        backup = policy.needs_backup or (policy.needs_stand_in and "backup" in has)
        return StandIns(self.setting.code if code else None, backup)

    @property
    def roles(self) -> list[frozenset[str]]:
        """The roles of the policy's instances: all of the setting's, but for `none`."""
        policy, _ = self.policy.build(self.stand_ins)
        return policy.roles(self.setting.instances, self.setting.extra_instances)


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies in ms over answered queries.

    `quantiles_ms` are those of SHARES. `sources` counts answers by source. `busy_ms` is how long
    instances were busy for each query and `work` how many units ran for it, all models together;
    `send_delay_p99_ms` how late the load generator sent, `lag_ms` how long reports and timers
    waited for the server's process on average. None where the mode does not know.
    """

    p50_ms: float
    p99_ms: float
    p999_ms: float
    quantiles_ms: tuple[float, ...]
    answered: int
    errors: int
    sources: dict[str, int]
    work: float | None = None
    busy_ms: float | None = None
    send_delay_p99_ms: float | None = None
    lag_ms: float | None = None

    @property
    def gap_ms(self) -> float:
        """The gap: p99.9 - p50."""
        return self.p999_ms - self.p50_ms

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
        quantiles_ms=tuple(np.quantile(ms, SHARES).round(3).tolist()),
        answered=len(ms),
        errors=errors,
        sources={source: count for source, count in sources.items() if count},
    )


def simulate_trial(trial: Trial) -> TrialResult:
    """Run a trial in the simulator."""
    setting, warm_up = trial.setting, trial.warm_up
    simulation = Simulation(
        trial.arrivals(),
        setting.instances,
        setting.extra_instances,
        {DEPLOYED: Constant(0.0)},
        faults=trial.plan(setting.all_instances),
        overhead=DISPATCH + trial.held_ms / 1e3,
        nodes=setting.nodes or None,
        config=SchedulerConfig(max_batch=setting.max_batch),
        seed=trial.seed,
        warm_up=warm_up,
    )
    links = setting.links(trial.seed)
    driver: Callable[..., Driver] = partial(DriverOnLinks, links)
    if setting.speed:
        cores = Cores(CORES, computing=setting.faults.computing, quota=setting.quota)
        driver = partial(DriverOnCores, cores, links)
    result = simulate(simulation, *trial.policy.build(trial.stand_ins), driver=driver)
    sources = result.sources[warm_up:]
    answered = sources != FAILED
    latencies = result.latencies[warm_up:][answered]
    if trial.outside_ms:
        shares = np.random.default_rng((trial.seed, 2)).random(len(latencies))
        latencies += np.interp(shares, SHARES, trial.outside_ms) / 1e3
    counts = {str(each): int(np.sum(sources == number)) for number, each in enumerate(SOURCES)}
    return msgspec.structs.replace(
        result_of(latencies, int(np.sum(~answered)), counts),
        work=sum(result.units.values()) / trial.queries,
        busy_ms=float(sum(result.busy.values())) / trial.queries * 1e3,
        lag_ms=result.lag * 1e3 if setting.speed else None,
    )
