"""One run of a latency experiment, real or simulated, and what came of it."""

from enum import StrEnum
from hashlib import sha256

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code
from parity_models.errors import UserError
from parity_models.faults import Constant
from parity_models.lab.latency.experiment import Setting
from parity_models.scheduling import DEPLOYED, SchedulerConfig, Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources
from parity_models.simulation import Simulation, simulate
from parity_models.simulation.arrivals import poisson_arrivals
from parity_models.simulation.simulator import FAILED, SOURCES

FORMAT = 2
"""Results of another format are not read from the cache."""

SHARES = np.concatenate([np.linspace(0, 0.99, 100), 1 - np.geomspace(0.01, 1e-4, 60)])
"""The shares of queries whose quantiles of latency are kept, for pictures."""

DISPATCH = 0.0004
"""Seconds that a simulated unit takes besides its service time: the engine's round trip."""


CALM_SERVICE = 0.025
"""Seconds that every unit takes in a calm trial."""


class Mode(StrEnum):
    """How a trial is run."""

    REAL = "real"
    """Worker processes, a server and a load generator; service times are emulated by waiting."""
    SIMULATED = "simulated"
    """The scheduler alone, against imagined instances."""


IN_EVERY_KEY = {
    "pool": "shared",
    "max_group_wait": 0.01,
    "parity_delay": 0.0,
    "answer": "first",
    "answer_after": 0.0,
    "copies": 2,
    "hedge_delay": None,
    "hedge_quantile": 0.95,
    "hedge_budget": 0.1,
}
"""Options that count in a trial's key though its policy has none of them, with these values: so
that results of earlier versions are found again.
"""


class Emulation(StrEnum):
    """How much of the contention of a real trial is drawn delays in workers, as if simulated."""

    NOTHING = "shaped links"
    """Shuffles are transfers between network namespaces, through the links that queries take."""
    SHUFFLES = "emulated"
    """Shuffles; hogs, pauses and other tenants are real."""
    EVERYTHING = "drawn"
    """All but kills, which are real but at planned times: the course that simulated runs meet."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `queries` are counted, after `warm_up` that are not but for all else alike.

    `outside_ms`: what a simulated answer takes besides queue and instance, as quantiles at
    SHARES; nothing if there are none.
    """

    mode: Mode
    setting: Setting
    policy: PolicyChoice
    queries: int
    warm_up: int
    seed: int
    network: Emulation = Emulation.SHUFFLES
    outside_ms: tuple[float, ...] = ()

    @property
    def key(self) -> str:
        """Names the trial by its content."""
        content = msgspec.to_builtins(self) | {"policy": IN_EVERY_KEY | self.policy.written_out()}
        return sha256(msgspec.json.encode((FORMAT, content), order="sorted")).hexdigest()[:24]

    @property
    def seconds(self) -> float:
        """How long queries arrive."""
        return (self.warm_up + self.queries) / self.setting.queries_per_second

    @property
    def code(self) -> Code:
        return Code(self.setting.code, (1,), (1,))

    @property
    def workers(self) -> int:
        """How many of the setting's instances the policy has: all of them, but for none."""
        policy, _ = self.policy.build(self.code)
        return len(policy.works(self.setting.instances, self.setting.parity_instances))

    @property
    def config(self) -> SchedulerConfig:
        return SchedulerConfig(max_batch=self.setting.max_batch)


class TrialResult(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies in ms over answered queries. `gap_ms` is p99.9 - p50.

    `quantiles_ms` are those of SHARES. `sources` counts answers by source. `work` is how many
    units ran for each query, all models together; `accuracy` is that of the answers;
    `send_delay_p99_ms` how late the load generator sent. None where the mode does not know.
    `date` says when it was run, `seconds` for how long (a simulation: how much of a core's time it
    took), `memory_mb` what a simulation's process took at most.
    """

    p50_ms: float
    mean_ms: float
    p99_ms: float
    p995_ms: float
    p999_ms: float
    gap_ms: float
    quantiles_ms: tuple[float, ...]
    answered: int
    errors: int
    sources: dict[str, int]
    work: float | None = None
    accuracy: float | None = None
    send_delay_p99_ms: float | None = None
    date: str = ""
    seconds: float = 0.0
    memory_mb: float | None = None

    def share(self, source: Source) -> float:
        """Of the answers, how many came from `source`."""
        return self.sources.get(source, 0) / self.answered


def result_of(
    latencies: NDArray[np.float64],
    errors: int,
    sources: dict[str, int],
    *,
    work: float | None = None,
    accuracy: float | None = None,
    send_delay_p99_ms: float | None = None,
) -> TrialResult:
    """Sum up the `latencies` (n,) in seconds of answered queries; UserError if there are none."""
    if not len(latencies):
        raise UserError("no query was answered, so there are no latencies: offer less load")
    ms = latencies * 1e3
    p50, p99, p995, p999 = np.quantile(ms, [0.5, 0.99, 0.995, 0.999]).tolist()
    return TrialResult(
        p50_ms=p50,
        mean_ms=float(ms.mean()),
        p99_ms=p99,
        p995_ms=p995,
        p999_ms=p999,
        gap_ms=p999 - p50,
        quantiles_ms=tuple(np.quantile(ms, SHARES).round(3).tolist()),
        answered=len(ms),
        errors=errors,
        sources=sources,
        work=work,
        accuracy=accuracy,
        send_delay_p99_ms=send_delay_p99_ms,
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
    total = trial.warm_up + trial.queries
    if arrivals is None:
        arrivals = poisson_arrivals(setting.queries_per_second, total, trial.seed)
    simulation = Simulation(
        arrivals,
        setting.instances,
        setting.parity_instances,
        {DEPLOYED: Constant(0.0)},
        faults=setting.simulated_faults(trial.seed, trial.seconds),
        overhead=DISPATCH,
        config=config or trial.config,
        seed=trial.seed,
    )
    result = simulate(simulation, *trial.policy.build(trial.code))
    sources = result.sources[trial.warm_up :]
    answered = sources != FAILED
    counts = {
        str(source): int(np.sum(sources == SOURCES.index(source)))
        for source in Source
        if np.any(sources == SOURCES.index(source))
    }
    latencies = result.latencies[trial.warm_up :][answered]
    if trial.outside_ms:
        shares = np.random.default_rng((trial.seed, 2)).random(len(latencies))
        latencies = latencies + np.interp(shares, SHARES, trial.outside_ms) / 1e3
    return result_of(
        latencies,
        int(np.sum(~answered)),
        counts,
        work=sum(result.units.values()) / total,
    )


def calm_trial(trial: Trial) -> Trial:
    """A trial at the rate of `trial`, without redundancy, disturbances, or chance in service."""
    calm = Setting(
        instances=trial.setting.instances,
        k=trial.setting.k,
        r=trial.setting.r,
        rate=trial.setting.queries_per_second,
        service=Constant(CALM_SERVICE),
        shuffles=0,
    )
    return msgspec.structs.replace(trial, setting=calm, policy=PolicyChoice(EqualResources.name))


def outside_ms(calm: TrialResult) -> tuple[float, ...]:
    """What answers of a real calm trial took besides queue and instance: quantiles at SHARES."""
    inside = (CALM_SERVICE + DISPATCH) * 1e3
    return tuple(max(0.0, ms - inside) for ms in calm.quantiles_ms)
