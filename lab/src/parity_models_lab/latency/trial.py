"""One run of a latency figure, real or simulated: its conditions, and its result.

A real one has a server process with worker processes, a client process and real contention. What
slows workers from within (service times, pauses, another tenant, kills) is in the server's fault
plan; transfers are made outside.
"""

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from math import ceil, exp, prod
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from parity_models.bundle.bundle import Bundle, NewModel, open_bundle, write_bundle
from parity_models.codes import DECODERS, Code, CodeSpec
from parity_models.errors import BundleError, LoadError, UserError
from parity_models.load import LoadSpec
from parity_models.roles import BACKUP, DEPLOYED, SOURCES, Source, parity_role
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import Requires, StandIns
from parity_models.scheduling.work import SchedulerConfig
from parity_models.serving.engine import Placement
from parity_models.serving.server import ServeOptions
from parity_models.simulation.arrivals import poisson_arrivals
from parity_models.simulation.emulation import (
    Constant,
    Duration,
    FaultPlan,
    Kill,
    LogNormal,
    Neighbours,
    Spell,
)
from parity_models.simulation.simulation import FAILED, Simulation
from parity_models.sizing.scenario import DISPATCH
from parity_models_lab.contention import FRONTEND_ADDRESS, enter, shuffling, star
from parity_models_lab.latency.link import DriverOnLinks, Links
from parity_models_lab.processes import offer_load_from_own_process
from parity_models_lab.served import BEGIN_FAULTS, BUSY, LAG, seconds, served

Count = Annotated[int, Meta(ge=1, le=100_000)]

QUERY_SHAPE = (1, 112, 112)
"""The shape of a query, float32: 50 kB. That is to the shaped links what the paper's queries of
some 600 kB are to its own, ten times as fast."""

OUTPUT_SHAPE = (10,)

ROWS = 200
"""Different queries that are sent for real."""

TENANT_RATE, TENANT_TIME = 15.0, Constant(0.02)
"""Queries a second of an instance of another tenant, and the time of each."""

SHARES = np.concatenate([np.linspace(0, 0.99, 100), 1 - np.geomspace(0.01, 1e-4, 60)])
"""The shares of queries whose quantiles of latency are kept where all of them matter."""

PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}

STAND_INS = [number for number, source in enumerate(SOURCES) if source.stands_in]
"""The sources that stand in for the model, in simulations."""

Mode = Literal["real", "simulated"]
"""With processes, sockets and emulated service times; or the scheduler alone."""


class Bursts(Struct, frozen=True, forbid_unknown_fields=True):
    """Queries come `factor` times as often in the last `length` of every `every` seconds."""

    factor: Annotated[float, Meta(gt=1, le=100)]
    every: Spell = 20.0
    length: Spell = 2.0

    def __post_init__(self) -> None:
        if self.length >= self.every:
            raise ValueError("bursts leave no time between them: make length shorter")

    def compress(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return `times` (n,) at a constant rate, those in bursts the closer together for it."""
        calm = self.every - self.length
        cycle, into = np.divmod(times, calm + self.length * self.factor)
        within = np.where(into < calm, into, calm + (into - calm) / self.factor)
        return np.asarray(cycle * self.every + within)


class Setting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The conditions of a run, whatever the policy. Times in seconds.

    `instances` run the deployed model. Every policy except `none` has extra instances:
    instances / k of them, rounded up. The offered load is `rate` in queries per second, or, where
    that is None, `load` as a share of what `instances` alone can carry; with a `burst`, outside of
    bursts. `service` is the emulated time of a batch of up to `max_batch` queries, `backup_service`
    that of a backup. The code has the `decoder` and its usual encoder. Stand-ins may answer a share
    `coverage` of the queries, and agree there unless `faults` set doubts. `stand_ins` are those
    that the bundle has for a policy that can use either.

    `shuffles` background transfers run at all times, through the links that queries take. With
    `quiet_links` queries take such links without shuffles. `tenant` instances of another
    deployment, with a light load of its own, share accelerators with ours: of two units there, one
    waits. One instance, drawn at random, is killed every `kill_every` seconds; 0: never. Instance i
    is on node i modulo `nodes`, if any. `faults` are all else that slows workers.
    """

    instances: Count = 12
    k: Annotated[int, Meta(ge=2, le=9)] = 2
    decoder: str = "separate"
    rate: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    load: Annotated[float, Meta(gt=0, le=3)] = 0.5
    burst: Bursts | None = None
    max_batch: Annotated[int, Meta(ge=1, le=64)] = 1
    service: Constant | LogNormal = LogNormal(0.025, 0.05)
    backup_service: Constant | LogNormal = LogNormal(0.0125, 0.05)
    stand_ins: Annotated[tuple[Literal["parity", "backup"], ...], Meta(min_length=1)] = ("parity",)
    coverage: Annotated[float, Meta(ge=0, le=1)] = 1.0
    shuffles: Annotated[int, Meta(ge=0, le=100_000)] = 4
    quiet_links: bool = False
    tenant: Annotated[int, Meta(ge=0)] = 0
    kill_every: Duration = 0.0
    nodes: Annotated[int, Meta(ge=0, le=100_000)] = 0
    faults: FaultPlan = FaultPlan()

    def __post_init__(self) -> None:
        if self.tenant > self.all_instances:
            raise ValueError(
                f"{self.tenant} instances of another tenant cannot each share a machine with one "
                f"of {self.all_instances}"
            )
        if self.mean_service <= 0:
            raise ValueError("units take no time: give a service time above 0")

    @property
    def extra(self) -> int:
        return ceil(self.instances / self.k)

    @property
    def all_instances(self) -> int:
        return self.instances + self.extra

    @property
    def code(self) -> Code:
        encoder = "stack" if DECODERS.find(self.decoder).reads_off else "sum"
        return Code(CodeSpec(encoder, self.decoder, self.k), QUERY_SHAPE, OUTPUT_SHAPE)

    @property
    def mean_service(self) -> float:
        """The mean service time in seconds."""
        match self.service:
            case Constant(seconds):
                return seconds
            case LogNormal(median, sigma):
                return median * exp(sigma**2 / 2)

    @property
    def queries_per_second(self) -> float:
        """The offered load outside of bursts."""
        if self.rate is not None:
            return self.rate
        paces = self.faults.generations or (1.0,)
        share = fmean(1 / paces[each % len(paces)] for each in range(self.instances))
        return self.load * self.instances * self.max_batch * share / self.mean_service

    def arrivals(self, queries: int, seed: int) -> NDArray[np.float64]:
        """Return the times of arrival: (queries,) seconds, in order."""
        times = poisson_arrivals(self.queries_per_second, queries, seed)
        return times if self.burst is None else self.burst.compress(times)

    @property
    def linked(self) -> bool:
        """True if instances are behind links."""
        return self.shuffles > 0 or self.quiet_links

    def links(self, seed: int) -> Links | None:
        """Return the links of simulated runs, to which real ones are shaped."""
        if not self.linked:
            return None
        row = {DEPLOYED: 4 * prod(QUERY_SHAPE), parity_role(0): 4 * prod(self.code.parity_shape)}
        return Links(self.shuffles, self.all_instances, row, seed)

    def plan(self, seed: int, queries: int, workers: int) -> FaultPlan:
        """Return the faults of real or simulated workers while so many queries arrive."""
        rng, everyone = Random(f"{seed}/kills"), range(self.all_instances)
        seconds = np.array(queries / self.queries_per_second)
        seconds = seconds if self.burst is None else self.burst.compress(seconds)
        number = ceil(seconds / self.kill_every) if self.kill_every else 0
        kills = [Kill(rng.choice(everyone), self.kill_every * (i + 1)) for i in range(number)]
        shared = sorted(Random(f"{seed}/machines").sample(everyone, self.tenant))
        here = tuple(worker for worker in shared if worker < workers)
        return msgspec.structs.replace(
            self.faults,
            seed=seed,
            service_time=self.service,
            service_times={BACKUP: self.backup_service},
            coverage=self.coverage,
            doubts=self.faults.doubts or (0.0,),
            neighbours=Neighbours(TENANT_RATE, TENANT_TIME, here) if here else None,
            kills=tuple(kill for kill in kills if kill.worker < workers),
        )


class Trial(Struct, frozen=True, kw_only=True):
    """One run: `queries` that are counted, after `warm_up` that are not.

    The overheads of serving are for simulations: `held_ms` is how much longer a unit holds its
    instance, `outside_ms` the time of an answer outside of queue and instance, at SHARES.
    """

    mode: Mode
    setting: Setting
    policy: PolicyChoice
    queries: int
    warm_up: int
    seed: int
    held_ms: float = 0.0
    outside_ms: tuple[float, ...] = ()

    def arrivals(self) -> NDArray[np.float64]:
        """Return the times of arrival: (warm_up + queries,) seconds, in order."""
        return self.setting.arrivals(self.warm_up + self.queries, self.seed)

    def plan(self, workers: int) -> FaultPlan:
        """Return the faults of so many workers."""
        return self.setting.plan(self.seed, self.warm_up + self.queries, workers)

    @property
    def stand_ins(self) -> StandIns:
        """The bundle's stand-ins that the policy uses."""
        has, code = self.setting.stand_ins, self.setting.code
        requires = self.policy.policy.requires
        if requires is Requires.EITHER:
            return StandIns(code if "parity" in has else None, "backup" in has)
        return StandIns(code, True).used(requires)


class TrialResult(Struct, frozen=True):
    """The columns of a `row` of a table, and the quantiles at SHARES. Times in ms.

    Latencies are those of answered queries: PERCENTILES, and the `gap`, p99.9 - p50. `stood in` is
    the share of answers by stand-ins, `failed` the number of queries without an answer. `busy` is
    the time of instances and `work` the number of units for each query; `send delay` the p99 of the
    load generator's delays, `lag` the mean wait of reports and timers for the server's process.
    None where the mode does not know.
    """

    row: dict[str, float | None]
    quantiles_ms: tuple[float, ...]

    def __getitem__(self, column: str) -> float:
        """Return a number; 0 where it is not known."""
        return self.row[column] or 0.0


def result_of(
    latencies: NDArray[np.float64], failed: int, stood_in: int, busy: float, **known: float
) -> TrialResult:
    """Sum up the `latencies` (n,) in seconds of answered queries, and further columns in `known`.
    Raises UserError if there are none."""
    if not len(latencies):
        raise UserError("no query was answered, so there are no latencies: offer less load")
    ms = latencies * 1e3
    p50, p99, p999 = np.quantile(ms, list(PERCENTILES.values())).tolist()
    row = {"p50": p50, "p99": p99, "p99.9": p999, "gap": p999 - p50}
    row |= {"stood in": stood_in / len(ms), "failed": failed, "busy": busy * 1e3}
    row |= {column: known.get(column) for column in ("work", "send delay", "lag")}
    return TrialResult(row, tuple(np.quantile(ms, SHARES).round(3).tolist()))


def simulation_of(trial: Trial) -> Simulation:
    """Return the workload and the instances of a trial, simulated."""
    setting = trial.setting
    return Simulation(
        trial.arrivals(),
        setting.instances,
        setting.extra,
        {DEPLOYED: Constant(0.0)},
        faults=trial.plan(setting.all_instances),
        overhead=DISPATCH + trial.held_ms / 1e3,
        nodes=setting.nodes or None,
        config=SchedulerConfig(max_batch=setting.max_batch),
        seed=trial.seed,
        warm_up=trial.warm_up,
    )


def simulate_trial(trial: Trial) -> TrialResult:
    """Run a trial in the simulator."""
    setting, warm_up = trial.setting, trial.warm_up
    links = setting.links(trial.seed)
    policy = trial.policy.build(trial.stand_ins)
    result = simulation_of(trial).run(*policy, driver=partial(DriverOnLinks, links))
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
    )


# Real trials


@contextmanager
def contended(
    setting: Setting, seed: int
) -> Iterator[tuple[tuple[Placement, ...], tuple[str, ...], Callable[[], None]]]:
    """Make a setting's contention, of which nothing is left at the end of the context.

    Gives the places of the instances, the beginning of the commands of the server and its clients,
    without which they do not reach the workers and the server, and a function that starts the
    contention, to be called once. Raises ContentionError if the network cannot be made here.
    """
    workers = range(setting.all_instances)
    nodes = [str(worker % setting.nodes) if setting.nodes else None for worker in workers]
    if not setting.linked:
        yield tuple(Placement(node=node) for node in nodes), (), lambda: None
        return
    with star(len(workers)) as machines, ExitStack() as stack:
        inside = zip(machines.machines, nodes, strict=True)
        places = tuple(Placement(enter(each), FRONTEND_ADDRESS, node) for each, node in inside)

        def begin() -> None:
            stack.enter_context(shuffling(setting.shuffles, machines, seed))

        yield places, enter(machines.frontend), begin


async def run_real(trial: Trial, folder: Path) -> TrialResult:
    """Run a trial with a bundle, made once, in `folder`. Raises what starting the contention, the
    server or the load raises."""
    setting = trial.setting
    policy, _ = trial.policy.build(trial.stand_ins)
    roles = policy.roles(setting.instances, setting.extra)  # fewer for `none`
    bundle = bundle_for(trial, folder)
    async with AsyncExitStack() as stack:
        contention = contended(setting, trial.seed)
        places, prefix, begin_contention = stack.enter_context(contention)
        options = ServeOptions(
            policy=trial.policy,
            instances=len(roles),
            extra_instances=sum(DEPLOYED not in each for each in roles) or None,
            port=0,
            max_batch=setting.max_batch,
            placements=places[: len(roles)],
            faults=trial.plan(len(roles)),
            share_groups=True,
            agreement=0,  # what may not be answered is drawn, as in simulations: coverage
        )
        server = await stack.enter_async_context(served(bundle.path, options, prefix))
        # Contention begins with the warm-up, which policies that learn would else learn from in
        # vain; so all queries are the load's own, and those of the warm-up are left out later.
        trace, rows = folder / "trace.txt", folder / "queries.npy"
        np.savetxt(trace, trial.arrivals(), fmt="%.9f")
        np.save(rows, np.random.default_rng(0).random((ROWS, *QUERY_SHAPE), np.float32))
        load = LoadSpec(
            url=server.message,
            model=bundle.manifest.name,
            binary=True,
            inputs=str(rows),
            trace=str(trace),
            queries=trial.warm_up + trial.queries,
            seed=trial.seed,
        )
        busy = await seconds(server, BUSY)

        def begin() -> None:
            server.tell(BEGIN_FAULTS)
            begin_contention()

        result = await offer_load_from_own_process(load, begin, prefix)
        busy = await seconds(server, BUSY) - busy
        lag = await seconds(server, LAG)
    counted = slice(trial.warm_up, None)
    answered = result.answered[counted]
    if not answered.any():
        raise LoadError(f"no query was answered: {result.errors()}; offer less load")
    stood_in = sum(result.came_from(source)[counted].sum() for source in Source if source.stands_in)
    return result_of(
        result.latency[counted][answered],
        int((~answered).sum()),
        int(stood_in),
        busy / int(result.answered.sum()),
        **{"send delay": 1e3 * float(np.nanquantile(result.send_delay[counted], 0.99))},
        lag=1e3 * lag,
    )


def bundle_for(trial: Trial, folder: Path) -> Bundle:
    """Return a bundle with the stand-ins that the policy uses, written once. Its models are linear,
    and their answers do not matter: what takes time is the emulated accelerator."""
    # Imported here: simulations do without torch.
    from parity_models.training.export import export, floats
    from parity_models.training.networks import build_network

    def linear(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> NewModel:
        network = build_network("linear", inputs, outputs)
        return NewModel(export(network, [floats(inputs)]), "linear")

    code = trial.setting.code if trial.stand_ins.code else None
    words = [code.spec.encoder, code.spec.decoder, str(code.k)] if code else ["uncoded"]
    path = folder / "-".join([*words, *(["backup"] if trial.stand_ins.backup else [])])
    try:
        return open_bundle(path)
    except BundleError:
        model = linear(QUERY_SHAPE, OUTPUT_SHAPE)
        return write_bundle(
            path,
            deployed=model,
            parity=[linear(code.parity_shape, code.parity_output_shape)] if code else (),
            backup=model if trial.stand_ins.backup else None,
            code=code.spec if code else None,
        )
