"""The scenario of a simulation: a workload on a cluster that serves some models, and its outcomes.

`simulation` drives the server's own scheduler, so policies are compared by the code that runs them.
All policies of a comparison meet the same arrivals and the same contention.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from rich import box
from rich.table import Table

from parity_models.bundle.bundle import Bundle, InferenceTimes, open_bundle
from parity_models.bundle.inference_time import inference_times, measure_models
from parity_models.codes import Code, CodeSpec
from parity_models.errors import UserError, spell
from parity_models.options import Options, option
from parity_models.roles import BACKUP, DEPLOYED, SOURCES, Source, parity_role, source_of
from parity_models.scheduling.choice import DIFFER_OR_DEFAULT, PolicyChoice, extra_instances
from parity_models.scheduling.policies import StandIns
from parity_models.scheduling.work import SchedulerConfig
from parity_models.simulation.arrivals import poisson_arrivals
from parity_models.simulation.emulation import (
    Exponential,
    FaultPlan,
    LogNormal,
    Shuffles,
    Uniform,
    load_fault_plan,
)
from parity_models.simulation.journal import Workload
from parity_models.simulation.simulation import FAILED, Simulation, SimulationResult
from parity_models.trust.doubt import Doubts
from parity_models.trust.evidence import DoubtCurve
from parity_models.trust.gate import AGREEMENT_OPTION, DEFAULT, Calibration, RequestedLevel
from parity_models.trust.gates import choose_gates

INSTANCES = 12
"""The default number of simulated instances."""

DISPATCH = 0.0004
"""Seconds that a unit takes besides its run: the engine's round trip."""

SPREAD = 0.05
"""The standard deviation of the logarithm of undisturbed run times."""

WARM_UP = 10
"""For every WARM_UP queries that count, one comes before them."""

ALIKE = 1.05
"""The largest ratio of two p99, or of two busy times, that chance explains."""


QUANTILES = 200
"""The doubts by which a simulation knows a stand-in."""

USUAL_DOUBTS = tuple(np.geomspace(1e-4, 0.5, QUANTILES).tolist())
"""The doubts of a stand-in without a bundle: 94 % of all its outputs agree with the model's, and
99 % of the surest three quarters."""


@dataclass(frozen=True, kw_only=True)
class ScenarioOptions(Options):
    """The queries that arrive, the instances that serve them, and the contention there."""

    rate: float | None = option(
        None,
        "Queries per second; by default half of the instances' capacity with batches of one.",
        gt=0,
        le=1e6,
    )
    instances: int | None = option(None, "Instances in all.", ge=1, le=100_000)
    contention: str | None = option(
        None,
        "A fault plan that slows instances; by default background transfers, as in the paper.",
        metavar="FILE",
    )

    def faults(self, instances: int) -> FaultPlan | None:
        """Return the given contention, for this many instances. Raises FaultPlanError."""
        if self.contention is None:
            return None
        plan = load_fault_plan(self.contention)
        plan.check(instances)
        return plan


@dataclass(frozen=True, kw_only=True)
class SimulationOptions(ScenarioOptions):
    """The scenario of a simulation, and a service without a bundle. Times in seconds."""

    queries: int | None = option(None, "Queries of each simulation.", ge=1000, le=10_000_000)
    seed: int = option(0, "Fixes all that is random.", ge=0, le=2**32 - 1)
    service_time: float | None = option(
        None, "Median time of the model for a query, in place of a bundle's.", unit="ms", gt=0
    )
    backup_time: float | None = option(
        None,
        "Median time of a backup, without a bundle; by default there is none.",
        unit="ms",
        gt=0,
    )
    differ: Annotated[float | None, DIFFER_OR_DEFAULT] = None
    agreement: Annotated[RequestedLevel, AGREEMENT_OPTION] = DEFAULT


@dataclass(frozen=True)
class Service:
    """The models of a bundle as they would be served.

    `seconds` is the median time of a unit of one query, by role; `overhead` is added to every unit.
    Units have up to `max_batch` queries, and each after the first adds a share `added` to their
    time, by role. `coverage` is the share of queries that each gated stand-in may answer, by
    source; `floor` that with a policy that has a budget of answers that may differ. `doubts` are
    equally likely doubts of each stand-in's outputs, ascending, and `curves` the calibrated ones.
    """

    seconds: Mapping[str, float]
    stand_ins: StandIns = field(default_factory=StandIns)
    coverage: Mapping[Source, float] = field(default_factory=dict)
    floor: Mapping[Source, float] = field(default_factory=dict)
    doubts: Mapping[Source, Sequence[float]] = field(default_factory=dict)
    curves: Mapping[Source, DoubtCurve] = field(default_factory=dict)
    overhead: float = DISPATCH
    max_batch: int = 1
    added: Mapping[str, float] = field(default_factory=dict)

    def emulate(self, faults: FaultPlan, differ: float | None) -> FaultPlan:
        """Return the plan with these stand-ins, as they answer within this budget of answers that
        may differ; None for a policy without one."""
        doubts = {}
        for source, each in self.doubts.items():
            curve = self.curves.get(source)
            factor = 1.0 if differ is None or curve is None else Doubts(curve, differ).factor
            doubts[source] = tuple(min(1.0, factor * doubt) for doubt in each)
        covered = self.coverage if differ is None else self.floor
        return msgspec.structs.replace(
            faults, coverage=1.0, coverages=dict(covered), doubts=(), doubts_of=doubts
        )

    @property
    def unit(self) -> float:
        """Seconds of a unit of one query on an undisturbed instance."""
        return self.seconds[DEPLOYED] + self.overhead

    @property
    def query(self) -> float:
        """Seconds of a query in a full unit on an undisturbed instance."""
        added = self.added.get(DEPLOYED, 0.0) * (self.max_batch - 1)
        return (self.seconds[DEPLOYED] * (1 + added) + self.overhead) / self.max_batch


def service_of(
    bundle: Bundle | Path | str | None, options: SimulationOptions, code: CodeSpec | None = None
) -> Service:
    """Return the service of a bundle or, without one, of the numbers in the options.

    The bundle's gates have the level `options.agreement` (see `choose_gates`), and the time of
    `options.service_time`, if given, scales all of its times. Without a bundle there are parity
    models of `code`, if given, that take as long as the model, further queries of a batch cost
    nothing, and stand-ins have USUAL_DOUBTS. Raises UserError for a level that the bundle is not
    calibrated for, and if the model's time is unknown.
    """
    service_time = options.service_time
    if bundle is not None:
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        service = _measured(opened, options)
        scale = 1.0 if service_time is None else service_time / service.seconds[DEPLOYED]
        times = {role: scale * each for role, each in service.seconds.items()}
        return replace(service, seconds=times)
    if service_time is None:
        raise UserError(
            "nothing says how long the model takes; give a bundle, or "
            f"{spell('service_time')} with the median time of a query"
        )
    made = None if code is None else Code(code, (1,), (1,))
    seconds = {DEPLOYED: service_time}
    if made is not None:
        seconds |= {parity_role(j): service_time for j in range(made.r)}
    if options.backup_time is not None:
        seconds[BACKUP] = options.backup_time
    stand_ins = StandIns(made, options.backup_time is not None)
    sources = {source_of(role) for role in seconds if role != DEPLOYED}
    return Service(seconds, stand_ins, doubts=dict.fromkeys(sources, USUAL_DOUBTS))


def _measured(bundle: Bundle, options: SimulationOptions) -> Service:
    """Return a bundle's service, with the times in the bundle or, without any, measured now."""
    manifest = bundle.manifest
    times = manifest.inference_times
    if manifest.deployed.elsewhere and manifest.backup is not None:
        if options.service_time is None:
            raise UserError(
                "nothing says how long the model takes, as it runs elsewhere; give the median time "
                f"of a query with {spell('service_time')}"
            )
        (ms,) = inference_times([bundle.pinned(manifest.backup).load()])
        times = InferenceTimes(1e3 * options.service_time, None, ms)
    elif times is None or (manifest.parity and times.parity is None):
        backup = None if manifest.backup is None else bundle.stored(manifest.backup)
        parity = list(map(bundle.stored, manifest.parity))
        times = measure_models(bundle.stored(manifest.deployed), parity, backup)
    taken = {DEPLOYED: times.deployed, BACKUP: times.backup}
    taken |= {parity_role(j): times.parity for j in range(len(manifest.parity))}
    seconds = {role: each / 1e3 for role, each in taken.items() if each is not None}
    added = dict.fromkeys(seconds, times.added)  # batches of stand-ins are not measured
    stand_ins = StandIns(bundle.code(), manifest.backup is not None)
    roles = list(manifest.models)
    level = options.agreement if stand_ins else None
    gates, floors = (
        choose_gates(bundle.gates, roles, level, budgeted=budgeted) for budgeted in (False, True)
    )
    coverage, floor = (
        {source: each.coverage for source, each in chosen.items() if each.level is not None}
        for chosen in (gates, floors)
    )
    known = {source: each.calibration for source, each in gates.items()}
    sources = {source_of(role) for role in seconds if role != DEPLOYED}
    return Service(
        seconds,
        stand_ins,
        coverage,
        floor,
        {each: doubt_quantiles(known[each]) if each in known else (1.0,) for each in sources},
        {source: each.curve for source, each in known.items() if each.curve is not None},
        max_batch=times.batch,
        added=added,
    )


def doubt_quantiles(calibration: Calibration) -> tuple[float, ...]:
    """Return equally likely doubts of a stand-in's outputs, ascending: QUANTILES of them."""
    curve = calibration.curve
    if curve is None:
        return (1.0,)
    known, shares = np.linspace(0, 1, len(curve.doubts)), np.linspace(0, 1, QUANTILES)
    return tuple(np.interp(shares, known, curve.doubts[::-1]).tolist())


@dataclass(frozen=True)
class Outcome:
    """The outcome of a policy. Latencies are those of answered queries, in ms.

    `answered` is the share of queries that were answered, `stood_in` the share that a stand-in
    answered, `differ` the share whose answers are expected to differ from the model's, `copied` the
    copies per query. `units` counts units by role.
    `busy_ms` is the time of instances per query, `idle` the share of their time in which they were
    idle.
    """

    p50_ms: float
    p99_ms: float
    p999_ms: float
    answered: float
    stood_in: float
    copied: float
    units: Mapping[str, int]
    busy_ms: float
    idle: float
    differ: float = 0.0


def outcome_table(
    title: str,
    outcomes: Iterable[tuple[str, Outcome, Sequence[str]]],
    further: Sequence[str] = (),
) -> Table:
    """Return the table of outcomes by name, with `further` columns of text at the end."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        title=title or None,
        title_justify="left",
        caption="simulated; times in ms; copies and busy time of instances are per query",
        caption_justify="left",
    )
    table.add_column("policy", overflow="fold")
    headings = ("p50", "p99", "p99.9", "copies", "stood\nin", "differ", "busy", "failed")
    for heading in (*headings, *further):
        table.add_column(heading, justify="right", no_wrap=heading != "misses")
    for name, found, more in outcomes:
        table.add_row(
            name,
            *(f"{ms:.1f}" for ms in (found.p50_ms, found.p99_ms, found.p999_ms)),
            f"{found.copied:.1%}",
            f"{found.stood_in:.1%}",
            f"{found.differ:.2%}",
            f"{found.busy_ms:.2f}",
            f"{1 - found.answered:.1%}",
            *more,
        )
    return table


@dataclass(frozen=True)
class Scenario:
    """A service, and the workload and cluster that every policy of a comparison meets.

    The `simulation` has all instances, and the contention as its faults. Policy and service fill in
    the rest.
    """

    service: Service
    simulation: Simulation

    @classmethod
    def of(
        cls, service: Service, options: ScenarioOptions, *, queries: int, seed: int
    ) -> "Scenario":
        """Return the scenario of a load of so many queries.

        Raises UserError for files that cannot be read or do not fit.
        """
        instances, warm_up = options.instances or INSTANCES, queries // WARM_UP
        rate = options.rate or 0.5 * instances / service.unit
        arrivals = poisson_arrivals(rate, queries + warm_up, seed)
        faults = options.faults(instances) or standard_contention(instances, service.unit)
        return cls(
            service,
            Simulation(arrivals, instances, 0, {}, faults=faults, seed=seed, warm_up=warm_up),
        )

    @classmethod
    def recorded(cls, service: Service, found: Workload, max_batch: int, seed: int) -> "Scenario":
        """Return the scenario of a journal: its queries, on instances as slow as its were."""
        seconds = {**service.seconds, **found.seconds}
        return cls(
            replace(service, seconds=seconds, overhead=0.0, max_batch=max_batch, added={}),
            Simulation(
                found.arrivals, len(found.slowness), 0, {}, seed=seed, slowness=found.slowness
            ),
        )

    @property
    def instances(self) -> int:
        """Instances in all."""
        return self.simulation.instances

    @property
    def queries(self) -> int:
        """The queries that count."""
        return len(self.simulation.arrivals) - self.simulation.warm_up

    @property
    def rate(self) -> float:
        """Queries per second."""
        return len(self.simulation.arrivals) / float(self.simulation.arrivals[-1])

    def outcome(self, choice: PolicyChoice) -> Outcome:
        """Simulate a policy. Raises UserError if no query is answered."""
        service, base = self.service, self.simulation
        policy, dispatch = choice.build(service.stand_ins)
        extra = extra_instances(choice, policy, base.instances, None, service.stand_ins.code)
        faults = msgspec.structs.replace(base.faults, seed=base.seed)
        simulation = replace(
            base,
            instances=base.instances - extra,
            extra_instances=extra,
            service={role: LogNormal(each, SPREAD) for role, each in service.seconds.items()},
            faults=service.emulate(faults, policy.differ),
            overhead=service.overhead,
            config=SchedulerConfig(max_batch=service.max_batch),
            further_rows=service.added,
        )
        return self.measure(simulation.run(policy, dispatch))

    def measure(self, result: SimulationResult) -> Outcome:
        """Return the outcome of a simulation. Raises UserError if no query is answered."""
        simulation = self.simulation
        arrivals, warm_up = simulation.arrivals, simulation.warm_up
        sources, latencies = result.sources[warm_up:], result.latencies[warm_up:]
        answered = sources != FAILED
        if not answered.any():
            raise UserError(
                f"no query was answered in the simulation: lower {spell('rate')}, or give other "
                f"{spell('contention')}"
            )
        p50, p99, p999 = np.quantile(latencies[answered] * 1e3, (0.5, 0.99, 0.999)).tolist()
        busy = sum(result.busy.values())
        span = float(arrivals[-1] - arrivals[warm_up])
        return Outcome(
            p50,
            p99,
            p999,
            float(answered.mean()),
            float((answered & (sources != SOURCES.index(Source.MODEL))).mean()),
            max(0.0, result.rows.get(DEPLOYED, 0) / len(sources) - 1),
            result.units,
            1e3 * busy / len(sources),
            max(0.0, 1 - busy / (simulation.instances * span)) if span > 0 else 0.0,
            float(result.doubts[warm_up:].mean()),
        )


def standard_contention(instances: int, seconds: float) -> FaultPlan:
    """Return background transfers as in the paper's experiments, in units of a run of `seconds`.

    At any time there is one per three instances. Each loads the links of two instances for some 40
    runs, and delays their units by 0.8 runs on average (exponential).
    """
    if instances < 2:
        return FaultPlan()
    transfer = Uniform(28 * seconds, 56 * seconds)
    delay = Exponential(0.8 * seconds)
    return FaultPlan(shuffles=Shuffles(max(1, round(instances / 3)), instances, transfer, delay))
