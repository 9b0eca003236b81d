"""One comparison of policies: a workload on a cluster that serves some models, simulated.

The scheduler that serves is driven by `simulation`, so a policy is compared by the code that runs
it. All policies of a comparison meet the same arrivals and the same contention.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.arrivals import poisson_arrivals
from parity_models.codes import Code, CodeSpec
from parity_models.emulation import Exponential, FaultPlan, LogNormal, Shuffles, Uniform
from parity_models.errors import UserError
from parity_models.load.spec import read_trace
from parity_models.models.bundle import Bundle
from parity_models.models.inference_time import inference_times
from parity_models.models.onnx_model import OnnxModel
from parity_models.protection.options import INSTANCES, Cluster, ServiceOptions, Workload
from parity_models.roles import BACKUP, DEPLOYED, Source, parity_role
from parity_models.scheduling import SchedulerConfig
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import StandIns
from parity_models.serving.deployment import (
    default_batch,
    extra_instances,
    model_files,
    stand_ins_of,
)
from parity_models.simulation import FAILED, SOURCES, Cores, Simulation, simulate
from parity_models.simulation.overheads import DISPATCH, with_outside
from parity_models.simulation.recording import Recording, load_contention, read_recording
from parity_models.trust.gates import choose_gates

SPREAD = 0.05
"""The standard deviation of the logarithm of undisturbed run times."""

WARM_UP = 10
"""One query of so many comes before those that count."""

ENOUGH = 20
"""Units of a role of which the recorded times are better than a ratio of measured ones."""

BATCHED = 1.05
"""Queries of a recorded unit, on average, from which on it ran batches."""


@dataclass(frozen=True)
class Service:
    """The models of a bundle as they would be served.

    `seconds` is the median time of a unit of one query, by role; `overhead` comes to every unit.
    Units have up to `max_batch` queries, and each after the first adds a share `added` to their
    time, by role. `coverage` is the share of queries that each stand-in may answer, by source,
    where it has a gate; of those answers the share `agreement`, of the worst of them, is the
    model's; None: unknown. An answer takes some more time outside of queue and instance, of which
    `outside_ms` are the quantiles at SHARES. With `cores` all instances share these.
    """

    seconds: Mapping[str, float]
    stand_ins: StandIns = field(default_factory=StandIns)
    coverage: Mapping[str, float] = field(default_factory=dict)
    agreement: float | None = None
    overhead: float = DISPATCH
    max_batch: int = 1
    added: Mapping[str, float] = field(default_factory=dict)
    outside_ms: tuple[float, ...] = ()
    cores: Cores | None = None

    @property
    def unit(self) -> float:
        """Seconds that a unit of one query takes an instance undisturbed."""
        return self.seconds[DEPLOYED] + self.overhead

    @property
    def query(self) -> float:
        """Seconds that a query takes an instance undisturbed, in a unit that is full."""
        added = self.added.get(DEPLOYED, 0.0) * (self.max_batch - 1)
        return (self.seconds[DEPLOYED] * (1 + added) + self.overhead) / self.max_batch


def added_by_row(one: float, several: float, rows: int) -> float:
    """Return the share of a unit's time that each of its rows after the first adds.

    A unit of one row takes `one`, a unit of so many `rows`, 2 or more, takes `several`.
    """
    return max(0.0, (several / one - 1) / (rows - 1))


def assumed_service(options: ServiceOptions, max_batch: int, code: CodeSpec | None) -> Service:
    """Return the service of numbers alone: further queries of a batch are assumed to cost nothing.

    There are parity models of `code`, which take as long as the model, and a backup where there is
    a time for it. Raises UserError where the model's time is not given.
    """
    if options.service_time is None:
        raise UserError(
            "nothing says how long the model takes; give a bundle, or --service-time with the "
            "median time of a query"
        )
    seconds = {DEPLOYED: options.service_time}
    made = None
    if code is not None:
        made = Code(code, (1,), (1,))
        seconds |= {parity_role(j): options.service_time for j in range(made.r)}
    if options.backup_time is not None:
        seconds[BACKUP] = options.backup_time
    backups = () if options.backup_time is None else (BACKUP,)
    sources = [*[Source.RECONSTRUCTION] * (made is not None), *[Source.BACKUP] * len(backups)]
    coverage = {str(source): options.coverage for source in sources}
    return Service(seconds, StandIns(made, backups), coverage, max_batch=max_batch)


def service_of(
    bundle: Bundle, agreement: float | None, recording: Recording | None, max_batch: int
) -> Service:
    """Return the service of a bundle with gates of a level of `agreement` (see `choose_gates`).

    Roles of which a `recording` has too few units take as long, by the deployed model's time, as
    where the bundle was made. Times of batches are measured now. Raises UserError for a level that
    the bundle is not calibrated for.
    """
    times = measured = _seconds(bundle)
    added: dict[str, float] = {}
    if max_batch > 1:
        one, full = (_measured_ms(bundle, rows) for rows in (1, max_batch))
        added = {role: added_by_row(ms, full[role], max_batch) for role, ms in one.items()}
    overhead = DISPATCH
    if recording is not None:
        overhead = 0.0  # it is in the recorded times
        recorded = {
            role: runs.median / (1 + added.get(role, 0.0) * (recording.rows - 1))
            for role, runs in recording.runs.items()
            if role in times and (role == DEPLOYED or runs.units >= ENOUGH)
        }
        scale = recorded[DEPLOYED] / measured[DEPLOYED]
        times = {role: seconds * scale for role, seconds in measured.items()} | recorded
    stand_ins = stand_ins_of(bundle)
    gates = choose_gates(bundle, list(model_files(bundle)), agreement if stand_ins else None)
    coverage = {str(source): each.level.coverage for source, each in gates.items()}
    accuracy = bundle.manifest.accuracy
    known = None if accuracy is None else accuracy.agreement
    if gates:
        known = min(each.level.agreement for each in gates.values())
    return Service(times, stand_ins, coverage, known, overhead, max_batch, added)


def _seconds(bundle: Bundle) -> dict[str, float]:
    """Return seconds by role: the bundle's or, where it has none, measured now."""
    times = bundle.manifest.inference_times
    if times is not None:
        known: dict[str, float | None] = {DEPLOYED: times.deployed, **times.of_backups}
        known |= {parity_role(j): times.parity for j in range(len(bundle.manifest.parity))}
        if all(known.get(role) for role in model_files(bundle)):
            return {role: ms / 1e3 for role, ms in known.items() if ms}
    return {role: ms / 1e3 for role, ms in _measured_ms(bundle, 1).items()}


def _measured_ms(bundle: Bundle, rows: int) -> dict[str, float]:
    files = model_files(bundle)
    models = [
        OnnxModel(bundle.path / each.file, signature=each.signature) for each in files.values()
    ]
    return dict(zip(files, inference_times(models, rows), strict=True))


@dataclass(frozen=True)
class Outcome:
    """What a policy did. Latencies are those of answered queries, in ms.

    `answered` is the share of queries that were, `stood_in` the share that a stand-in answered, and
    `copied` the further runs of the model for each query. `units` are how many ran, by role, with
    so many `rows` in them. `busy_ms` is how long instances were busy for each query, `idle` the
    share of their time for which they were not.
    """

    p50_ms: float
    p99_ms: float
    p999_ms: float
    answered: float
    stood_in: float
    copied: float
    units: Mapping[str, int]
    rows: Mapping[str, int]
    busy_ms: float
    idle: float


@dataclass(frozen=True)
class Scene:
    """What every policy of a comparison meets.

    Queries arrive at the times `arrivals` (n,) in seconds, of which the first `warm_up` do not
    count. Of the `instances`, `extra` run stand-ins alone for policies that have such; None: the
    policy's default.
    """

    service: Service
    arrivals: NDArray[np.float64]
    warm_up: int
    instances: int
    contention: FaultPlan
    seed: int = 0
    extra: int | None = None

    @property
    def queries(self) -> int:
        """The queries that count."""
        return len(self.arrivals) - self.warm_up

    @property
    def rate(self) -> float:
        """Queries per second."""
        return len(self.arrivals) / float(self.arrivals[-1])

    def outcome(self, choice: PolicyChoice) -> Outcome:
        """Simulate a policy. Raises UserError if no query is answered."""
        service = self.service
        policy, dispatch = choice.build(service.stand_ins)
        code = service.stand_ins.code
        extra = extra_instances(choice, policy, self.instances, self.extra, code)
        faults = msgspec.structs.replace(
            self.contention, seed=self.seed, coverage=1.0, coverages=dict(service.coverage)
        )
        simulation = Simulation(
            self.arrivals,
            self.instances - extra,
            extra,
            {role: LogNormal(each, SPREAD) for role, each in service.seconds.items()},
            faults=faults,
            cores=service.cores,
            overhead=service.overhead,
            config=SchedulerConfig(max_batch=service.max_batch),
            seed=self.seed,
            warm_up=self.warm_up,
            further_rows=service.added,
        )
        result = simulate(simulation, policy, dispatch)
        sources, latencies = result.sources[self.warm_up :], result.latencies[self.warm_up :]
        answered = sources != FAILED
        if not answered.any():
            raise UserError(
                "no query was answered in the simulation: offer less --load, or other --contention"
            )
        ms = with_outside(latencies[answered], service.outside_ms, self.seed) * 1e3
        p50, p99, p999 = np.quantile(ms, (0.5, 0.99, 0.999)).tolist()
        busy = sum(result.busy.values())
        span = float(self.arrivals[-1] - self.arrivals[self.warm_up])
        return Outcome(
            p50,
            p99,
            p999,
            float(answered.mean()),
            float((answered & (sources != SOURCES.index(Source.MODEL))).mean()),
            max(0.0, result.rows.get(DEPLOYED, 0) / len(sources) - 1),
            result.units,
            result.rows,
            1e3 * busy / len(sources),
            max(0.0, 1 - busy / (self.instances * span)) if span > 0 else 0.0,
        )


def recording_of(options: ServiceOptions) -> Recording | None:
    """Read the recording. Raises UserError for a file that is none."""
    return None if options.recorded is None else read_recording(Path(options.recorded))


def scene_of(
    service: Service,
    workload: Workload,
    cluster: Cluster,
    *,
    queries: int,
    recording: Recording | None = None,
) -> Scene:
    """Return the scene of a workload on a cluster, by default of so many `queries`.

    Raises UserError for files that cannot be read or do not fit.
    """
    if recording is not None and recording.rows > BATCHED and service.max_batch == 1:
        raise UserError(
            f"units of the recorded server had {recording.rows:.1f} queries on average, and here "
            "there is one in a unit; give --max-batch as that server has it"
        )
    instances = cluster.instances or INSTANCES
    count = workload.queries or queries
    return Scene(
        service,
        _arrivals(workload, recording, service, instances, count + count // WARM_UP),
        count // WARM_UP,
        instances,
        contention_of(cluster, service, instances, recording),
        workload.seed,
        cluster.extra_instances,
    )


def contention_of(
    cluster: Cluster, service: Service, instances: int, recording: Recording | None = None
) -> FaultPlan:
    """Return the contention of a cluster with so many instances: the given, recorded, or usual."""
    if cluster.contention is not None:
        plan = load_contention(cluster.contention)
    elif recording is not None:
        plan = recording.contention
    else:
        return standard_contention(instances, service.unit)
    plan.check(instances)
    return plan


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


def offered(workload: Workload, service: Service, instances: int) -> float:
    """Return the queries per second that are asked for."""
    return workload.rate or workload.load * instances / service.unit


def _arrivals(
    workload: Workload,
    recording: Recording | None,
    service: Service,
    instances: int,
    count: int,
) -> NDArray[np.float64]:
    if workload.arrivals is not None:
        times = read_trace(workload.arrivals)
        wanted = count if workload.queries is not None else min(count, len(times))
        if len(times) < max(wanted, 2 * WARM_UP):
            raise UserError(
                f"{workload.arrivals} has {len(times):,} times, too few for {wanted:,} queries, "
                "those of the warm-up included"
            )
        if not times[wanted - 1]:
            raise UserError(f"all times of {workload.arrivals} are the same, so there is no rate")
        return times[:wanted]
    if recording is not None:
        return recording.arrivals(count, workload.seed, workload.rate)
    return poisson_arrivals(offered(workload, service, instances), count, workload.seed)


def service_for(
    bundle: Bundle | None, options: Any, code: CodeSpec | None, recording: Recording | None
) -> Service:
    """Return the service of a bundle, or without one that of numbers alone.

    A `service_time` that is given takes the place of the model's; stand-ins' times follow it.
    """
    if bundle is None:
        return assumed_service(options, options.max_batch or 1, code)
    batch = options.max_batch or default_batch(bundle)
    service = service_of(bundle, options.agreement, recording, batch)
    if options.service_time is None:
        return service
    scale = options.service_time / service.seconds[DEPLOYED]
    return replace(service, seconds={role: scale * each for role, each in service.seconds.items()})
