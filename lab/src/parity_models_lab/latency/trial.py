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
from parity_models.roles import DEPLOYED
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import StandIns
from parity_models.scheduling.work import SchedulerConfig
from parity_models.simulation import FAILED, SOURCES, Driver, Simulation, simulate
from parity_models_lab.latency.cores import Cores, DriverOnCores
from parity_models_lab.latency.link import DriverOnLinks
from parity_models_lab.latency.setting import CORES, Setting

SHARES = np.concatenate([np.linspace(0, 0.99, 100), 1 - np.geomspace(0.01, 1e-4, 60)])
"""The shares of queries whose quantiles of latency are kept where all of them matter."""

PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}

STAND_INS = [number for number, source in enumerate(SOURCES) if source.stands_in]
"""The sources that stand in for the model, in simulations."""

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
        return sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:24]

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


class TrialResult(msgspec.Struct, frozen=True):
    """The columns of a `row` of a table, and the quantiles at SHARES. Times in ms.

    Latencies are those of answered queries: PERCENTILES, and the `gap`, p99.9 - p50. `stood in` is
    the share of answers by stand-ins, `failed` how many queries did. `busy` is how long instances
    were busy for each query and `work` how many units ran for it, all models together; `send delay`
    how late the load generator sent at p99, `lag` how long reports and timers waited for the
    server's process on average. None where the mode does not know.
    """

    row: dict[str, float | None]
    quantiles_ms: tuple[float, ...]

    def __getitem__(self, column: str) -> float:
        """Return a number; 0 where it is not known."""
        return self.row[column] or 0.0


def result_of(
    latencies: NDArray[np.float64],
    failed: int,
    stood_in: int,
    busy: float,
    *,
    work: float | None = None,
    send_delay: float | None = None,
    lag: float | None = None,
) -> TrialResult:
    """Sum up the `latencies` (n,) in seconds of answered queries.

    Raises UserError if there are none.
    """
    if not len(latencies):
        raise UserError("no query was answered, so there are no latencies: offer less load")
    ms = latencies * 1e3
    p50, p99, p999 = np.quantile(ms, list(PERCENTILES.values())).tolist()
    row = {"p50": p50, "p99": p99, "p99.9": p999, "gap": p999 - p50}
    row |= {"stood in": stood_in / len(ms), "failed": failed, "busy": busy * 1e3, "work": work}
    row |= {"send delay": send_delay and send_delay * 1e3, "lag": lag and lag * 1e3}
    return TrialResult(row, tuple(np.quantile(ms, SHARES).round(3).tolist()))


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
    return result_of(
        latencies,
        int(np.sum(~answered)),
        int(np.isin(sources, STAND_INS).sum()),
        float(sum(result.busy.values())) / trial.queries,
        work=sum(result.units.values()) / trial.queries,
        lag=result.lag if setting.speed else None,
    )
