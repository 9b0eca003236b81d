"""One run of a latency experiment, real or simulated, and its result."""

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from hashlib import sha256

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.arrivals import poisson_arrivals
from parity_models.codes import Code
from parity_models.emulation import Constant
from parity_models.errors import UserError
from parity_models.protection.scene import DISPATCH
from parity_models.scheduling import BACKUP, DEPLOYED, SchedulerConfig, Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import StandIns
from parity_models.simulation import FAILED, SOURCES, Driver, Simulation, simulate
from parity_models_lab.latency.cores import Cores, DriverOnCores
from parity_models_lab.latency.link import DriverOnLinks
from parity_models_lab.latency.overheads import SHARES, Overheads, with_outside
from parity_models_lab.latency.setting import Setting

PARTS = 40
"""Consecutive parts of a trial, of as many queries each, whose p99 is kept."""


class Mode(StrEnum):
    """Modes of trials."""

    REAL = "real"
    """Worker processes, a server and a load generator; service times are emulated by waiting."""
    SIMULATED = "simulated"
    """The scheduler alone, against imagined instances."""


class Emulation(StrEnum):
    """The part of a real trial's contention that workers emulate by drawn delays.

    Simulated shuffles are transfers over links for NOTHING, else drawn delays, too.
    """

    NOTHING = "shaped links"
    """Shuffles are transfers between network namespaces, through the links that queries take."""
    SHUFFLES = "emulated"
    """Shuffles; hogs, pauses and other tenants are real."""
    EVERYTHING = "drawn"
    """All but kills, which are real but at planned times: the course that simulated runs meet."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One run: `queries` that are counted, after `warm_up` that are not.

    `held_ms`: how long a simulated unit holds its instance besides what is simulated otherwise.
    `outside_ms`: what a simulated answer takes besides queue and instance, as quantiles at
    SHARES; nothing if there are none. `serving_ms`, `unseen_ms` and `unit_ms` are what is computed
    besides units, where these are computed: see `Cores`.
    """

    mode: Mode
    setting: Setting
    policy: PolicyChoice
    queries: int
    warm_up: int
    seed: int
    network: Emulation = Emulation.NOTHING
    held_ms: float = 0.0
    outside_ms: tuple[float, ...] = ()
    serving_ms: float = 0.0
    unseen_ms: float = 0.0
    unit_ms: float = 0.0

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
        rate, bursts = self.setting.queries_per_second, self.setting.bursts
        times = poisson_arrivals(rate, self.warm_up + self.queries, self.seed)
        return times if bursts is None else bursts.compress(times)

    @property
    def code(self) -> Code:
        return Code(self.setting.code, (1,), (1,))

    @property
    def stand_ins(self) -> StandIns:
        """The bundle's stand-ins for the policy."""
        has = self.setting.stand_ins
        code = self.code if "parity" in has or self.policy.policy.needs_code else None
        return StandIns(code, (BACKUP,) if "backup" in has else ())

    @property
    def cores(self) -> Cores | None:
        """The cores of a simulation: as set, or, where contention is real, those of real runs."""
        setting = self.setting
        if setting.speed:
            return setting.slow_cores()
        if self.network is not Emulation.NOTHING and not setting.cores:
            return None
        ms = (self.serving_ms, self.unseen_ms, self.unit_ms)
        return setting.simulated_cores(Overheads(self.held_ms, self.outside_ms, *ms))

    @property
    def workers(self) -> int:
        """The number of instances that the policy has: all of the setting's, but for `none`."""
        return len(self._roles)

    @property
    def extra(self) -> int:
        """The number of them that run stand-ins only."""
        return sum(DEPLOYED not in roles for roles in self._roles)

    @property
    def _roles(self) -> list[frozenset[str]]:
        policy, _ = self.policy.build(self.stand_ins)
        return policy.roles(self.setting.instances, self.setting.parity_instances)

    @property
    def config(self) -> SchedulerConfig:
        return SchedulerConfig(max_batch=self.setting.max_batch)


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies in ms over answered queries. `gap_ms` is p99.9 - p50.

    `quantiles_ms` are those of SHARES, `course_ms` the p99 of PARTS of the trial, in their order.
    `sources` counts answers by source. `work` is how many units ran for each query, all models
    together; `busy_ms` how long instances were busy with them, `workers_ms` how long workers
    computed, `serving_ms` server and client, all for each query; `accuracy` is that of the answers;
    `send_delay_p99_ms` how late the load generator sent, `lag_ms` how long reports and timers
    waited for the server's process on average. None where the mode does not know.
    """

    p50_ms: float
    p99_ms: float
    p999_ms: float
    gap_ms: float
    quantiles_ms: tuple[float, ...]
    course_ms: tuple[float, ...]
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
    """Sum up the `latencies` (n,) in seconds of answered queries, in the order of arrival.

    Raises UserError if there are none.
    """
    if not len(latencies):
        raise UserError("no query was answered, so there are no latencies: offer less load")
    ms = latencies * 1e3
    p50, p99, p999 = np.quantile(ms, [0.5, 0.99, 0.999]).tolist()
    parts = np.array_split(ms, min(PARTS, len(ms)))
    return TrialResult(
        p50_ms=p50,
        p99_ms=p99,
        p999_ms=p999,
        gap_ms=p999 - p50,
        quantiles_ms=tuple(np.quantile(ms, SHARES).round(3).tolist()),
        course_ms=tuple(float(np.quantile(part, 0.99).round(3)) for part in parts),
        answered=len(ms),
        errors=errors,
        sources=sources,
    )


def simulate_trial(
    trial: Trial,
    arrivals: NDArray[np.float64] | None = None,
    config: SchedulerConfig | None = None,
) -> TrialResult:
    """Run a trial in the simulator.

    `arrivals` (warm_up + queries,) are the times in seconds at which queries arrive, in order;
    without them arrivals are Poisson. `config`: the scheduler's, in place of the trial's.
    """
    setting = trial.setting
    links = trial.network is Emulation.NOTHING
    simulation = Simulation(
        trial.arrivals() if arrivals is None else arrivals,
        setting.instances,
        setting.parity_instances,
        {DEPLOYED: Constant(0.0)},
        faults=setting.simulated_faults(trial.seed, trial.seconds, links=links),
        overhead=DISPATCH + trial.held_ms / 1e3,
        nodes=setting.nodes or None,
        config=config or trial.config,
        seed=trial.seed,
        warm_up=trial.warm_up,
    )
    ways = setting.links(trial.seed) if links else None
    driver: Callable[..., Driver] = partial(DriverOnLinks, ways)
    if trial.cores is not None:
        driver = partial(DriverOnCores, trial.cores, ways)
    result = simulate(simulation, *trial.policy.build(trial.stand_ins), driver=driver)
    sources = result.sources[trial.warm_up :]
    answered = sources != FAILED
    counts = {
        str(source): int(np.sum(sources == SOURCES.index(source)))
        for source in Source
        if np.any(sources == SOURCES.index(source))
    }
    latencies = result.latencies[trial.warm_up :][answered]
    return msgspec.structs.replace(
        result_of(
            with_outside(latencies, trial.outside_ms, trial.seed), int(np.sum(~answered)), counts
        ),
        work=sum(result.units.values()) / trial.queries,
        busy_ms=float(sum(result.busy.values())) / trial.queries * 1e3,
        lag_ms=result.lag * 1e3 if trial.cores else None,
    )
