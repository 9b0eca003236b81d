"""Discrete-event simulation that drives the very `Scheduler` that serves.

A heap keeps the calendar. An instance takes as long for a unit as its service time and the fault
plan say (`WorkerFaults`, the code that real workers obey). Arrivals and faults depend
only on seeds, so all policies that are compared meet the same load and the same faults.
"""

import gc
import heapq
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.roles import BACKUP, DEPLOYED, SOURCES, Source
from parity_models.scheduling.actions import (
    Action,
    Answer,
    Audit,
    Cancel,
    Compare,
    Decode,
    Encode,
    Fail,
    ForgetGroup,
    ForgetQueries,
    Recycle,
    RecycleReason,
    Run,
    Verify,
    WakeAt,
)
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.policies import Policy
from parity_models.scheduling.work import SchedulerConfig
from parity_models.simulation.emulation import Distribution, FaultPlan, Transfers, WorkerFaults

FAILED = -1
"""The source of a query that failed."""

_NUMBERS = {source: number for number, source in enumerate(SOURCES)}

MAX_SECONDS = 1e6
"""The longest time in which queries arrive. Faults and timers happen throughout."""

GC_THRESHOLD = 100_000
"""New objects between two runs of the garbage collector. A simulation makes next to no cycles, and
looking for them after 700 objects, as usual, takes a tenth of its time."""


@dataclass(frozen=True)
class Simulation:
    """A workload and the instances that it meets.

    An instance stops computing a unit when it hears that the unit is cancelled, as with the local
    engine. A unit that is on its way still arrives, and faults still hold it.

    Args:
        arrivals: The times (n,) in seconds at which queries arrive, in order.
        instances: Instances of the deployed model.
        extra_instances: Further instances, for redundancy.
        service: The time of a unit by role; a role that is not named takes as long as DEPLOYED.
        faults: Slowness and failures.
        restart: Seconds for which an instance that was killed or recycled is away.
        overhead: Seconds added to every unit: the engine's round trip.
        nodes: Instance i is on node i modulo `nodes`; None: each has a node to itself.
        config: Bounds of the scheduler.
        seed: Seed of service times.
        warm_up: Work does not count until this many queries have arrived.
        further_rows: The share of a unit's time that each row after the first adds, by role; by
            default nothing, as on an accelerator that is not full.
        slowness: For each instance, in rotation, times in order, and how many times as long as
            usual a unit takes that arrives from then on; by default all take as long as usual.

    """

    arrivals: NDArray[np.float64]
    instances: int
    extra_instances: int
    service: Mapping[str, Distribution]
    faults: FaultPlan = field(default_factory=FaultPlan)
    restart: float = 1.0
    overhead: float = 0.0
    nodes: int | None = None
    config: SchedulerConfig = field(default_factory=SchedulerConfig)
    seed: int = 0
    warm_up: int = 0
    further_rows: Mapping[str, float] = field(default_factory=dict)
    slowness: Sequence[Sequence[tuple[float, float]]] = ()

    def run(
        self,
        policy: Policy,
        dispatch: Dispatch | None = None,
        driver: "Callable[..., Driver] | None" = None,
    ) -> "SimulationResult":
        """Run the simulation to its end.

        Args:
            policy: The redundancy policy.
            dispatch: The dispatch rule, by default the policy's.
            driver: A subclass of Driver that simulates more of a machine.

        Returns:
            The fate of each query, and the work that was done.

        Raises:
            UserError: The queries arrive over more than MAX_SECONDS.
        """
        seconds = self.arrivals[-1] if len(self.arrivals) else 0.0
        if seconds > MAX_SECONDS:
            raise UserError(
                f"the queries arrive over {seconds:.3g} simulated seconds; {MAX_SECONDS:.3g} are "
                "simulated at most: give a higher rate or fewer queries"
            )
        thresholds = gc.get_threshold()
        gc.set_threshold(GC_THRESHOLD, *thresholds[1:])
        try:
            return (driver or Driver)(self, policy, dispatch).run()
        finally:
            gc.set_threshold(*thresholds)


@dataclass(frozen=True)
class SimulationResult:
    """The fate of the queries, in order of arrival.

    `latencies` (n,) in seconds, `sources` (n,) indices into SOURCES or FAILED, `doubts` (n,) the
    probabilities that answers differ from the model's. `units`, `busy` and
    `rows` are units, instance-seconds and rows, by role; `recycled` counts recycled instances, by
    reason.
    """

    latencies: NDArray[np.float64]
    sources: NDArray[np.int8]
    doubts: NDArray[np.float64]
    units: Counter[str] = field(default_factory=Counter)
    busy: defaultdict[str, float] = field(default_factory=partial(defaultdict, float))
    recycled: Counter[RecycleReason] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)


@dataclass(eq=False)
class Instance:
    """A simulated instance: number `slot` of the plan, replaced `life` times."""

    slot: int
    roles: frozenset[str]
    faults: WorkerFaults | None
    life: int = 0

    @property
    def name(self) -> str:
        return f"{self.slot}.{self.life}" if self.life else f"{self.slot}"


@dataclass(slots=True)
class Running:
    """A unit on its way to an instance, or there: it was `sent`, arrives (`there`) and `ends`."""

    run: Run
    instance: Instance
    counted: bool
    sent: float
    there: float
    ends: float


class Driver:
    """One simulation under a policy and a dispatch rule."""

    def __init__(self, simulation: Simulation, policy: Policy, dispatch: Dispatch | None) -> None:
        self._simulation = simulation
        self._scheduler = Scheduler(policy, simulation.config, dispatch)
        self._now = 0.0
        self._calendar: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._random = Random(simulation.seed)
        self._count = count = len(simulation.arrivals)
        self._result = SimulationResult(
            np.full(count, np.nan), np.full(count, FAILED, np.int8), np.zeros(count)
        )
        # Elements of views are Python's floats and ints, which cost less than NumPy's.
        self._arrivals = simulation.arrivals.data.cast("B").cast("d")
        self._latencies = self._result.latencies.data.cast("B").cast("d")
        self._sources = self._result.sources.data
        self._doubts = self._result.doubts.data.cast("B").cast("d")
        self._arrived = 0
        self._ended = 0
        self._wake_time: float | None = None
        self._decoded: list[Decode] = []
        self._instances: dict[str, Instance] = {}
        self._running: dict[int, Running] = {}
        self._do: dict[type[Action], Callable[[Any], None]] = {
            Run: self._run,
            Verify: self._verify,
            Recycle: self._recycle,
            Cancel: self._cancel,
            Decode: self._decoded.append,
            Answer: self._answered,
            Fail: lambda fail: self._end(fail.query, FAILED),
            WakeAt: self._wake_at,
            # A simulation has no tensors.
            **dict.fromkeys(
                (Audit, Encode, Compare, ForgetQueries, ForgetGroup), lambda action: None
            ),
        }
        plan = simulation.faults
        faulty = plan != FaultPlan(seed=plan.seed)
        transfers = Transfers(plan.shuffles, plan.seed) if plan.shuffles else None
        roles = policy.roles(simulation.instances, simulation.extra_instances)
        for slot, role in enumerate(roles):
            faults = WorkerFaults(plan, slot, transfers) if faulty else None
            instance = Instance(slot, role, faults)
            self._join(instance)
            for at in plan.kill_times(slot):
                self._at(at, partial(self._replace, instance))

    def run(self) -> SimulationResult:
        if self._count:
            self._at(self._arrivals[0], self._arrive)
        while self._ended < self._count:
            self._now, _, callback = heapq.heappop(self._calendar)
            callback()
        for running in self._running.values():
            self._add_busy(running, running.ends)
        return self._result

    def _at(self, time: float, callback: Callable[[], None]) -> None:
        """Enter into the calendar; of two entries for one time, the first comes first."""
        self._order += 1
        time = time if time > self._now else self._now
        heapq.heappush(self._calendar, (time, self._order, callback))

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            do = self._do.get(type(action))
            if do is None:
                raise TypeError(f"a simulation cannot carry out {action}")
            do(action)
        while self._decoded:
            decode, source = self._decoded.pop(), Source.RECONSTRUCTION
            refused = [slot for slot in decode.slots if self._refuses(decode.members[slot], source)]
            doubts = {slot: self._doubt(decode.members[slot], source) for slot in decode.slots}
            self._carry_out(self._scheduler.decoded(self._now, decode.group, refused, doubts))

    # Events

    def _arrive(self) -> None:
        query = self._arrived
        self._arrived += 1
        self._carry_out(self._scheduler.queries_arrived(self._now, (query,), "query"))
        if self._arrived < self._count:
            self._at(self._arrivals[self._arrived], self._arrive)

    def _end_unit(self, running: Running, *, finished: bool = True) -> None:
        """The instance is done with the unit, and reports it."""
        run = running.run
        if self._running.pop(run.unit, None) is None:
            return  # it was cancelled before
        self._add_busy(running, self._now)
        if not finished:
            self._carry_out(self._scheduler.unit_failed(self._now, run.unit, "cancelled"))
            return
        refused: list[int] = []
        doubts: dict[int, float] = {}
        if run.role == BACKUP:
            source = Source.BACKUP
            refused = [query for query in run.subjects if self._refuses(query, source)]
            doubts = {query: self._doubt(query, source) for query in run.subjects}
        done = self._scheduler.unit_finished(self._now, run.unit, refused, doubts=doubts)
        self._carry_out(done)

    def _doubt(self, query: int, source: Source) -> float:
        """Return the probability that the stand-in's output for the query is wrong."""
        return self._simulation.faults.doubt(query, source)

    def _refuses(self, query: int, source: Source) -> bool:
        """Return whether the stand-in with this source must not answer the query."""
        return self._simulation.faults.refuses(query, source)

    def _wake(self, time: float) -> None:
        if time == self._wake_time:
            self._wake_time = None
            self._carry_out(self._scheduler.time_passed(self._now))

    def _join(self, instance: Instance) -> None:
        self._instances[instance.name] = instance
        nodes = self._simulation.nodes
        node = None if nodes is None else str(instance.slot % nodes)
        joined = self._scheduler.instance_joined(self._now, instance.name, instance.roles, node)
        self._carry_out(joined)

    def _replace(self, instance: Instance) -> None:
        """If the instance is up, let it leave and join again under another name."""
        if self._instances.pop(instance.name, None) is not None:
            self._carry_out(self._scheduler.instance_left(self._now, instance.name))
            instance.life += 1
            self._at(self._now + self._simulation.restart, partial(self._join, instance))

    # Actions

    def _run(self, run: Run) -> None:
        counted, rows = self._arrived > self._simulation.warm_up, len(run.subjects)
        if counted:
            self._result.units[run.role] += 1
            self._result.rows[run.role] += rows
        instance = self._instances[run.instance]
        there = self._there(instance, run.role, rows)
        ends = self._ends(instance, run.role, rows, there)
        self._running[run.unit] = running = Running(run, instance, counted, self._now, there, ends)
        self._at(ends, partial(self._end_unit, running))

    def _ends(self, instance: Instance, role: str, rows: int, there: float) -> float:
        """Return when the instance reports a unit of so many rows that arrives at `there`."""
        simulation, service = self._simulation, self._simulation.service
        took = service.get(role, service[DEPLOYED]).draw(self._random)
        took *= 1 + simulation.further_rows.get(role, 0.0) * (rows - 1)
        if simulation.slowness:
            course = simulation.slowness[instance.slot % len(simulation.slowness)]
            begun = bisect(course, there, key=itemgetter(0))
            took *= course[begun - 1][1] if begun else 1.0
        ends = there + took
        if instance.faults is not None:
            ends = instance.faults.release(there, ends, role)
        return ends + simulation.overhead

    def _add_busy(self, running: Running, ends: float) -> None:
        if running.counted:
            role = running.run.role
            self._result.busy[role] = self._result.busy[role] + ends - running.sent

    def _cancel(self, cancel: Cancel) -> None:
        running = self._running.get(cancel.unit)
        if running is None:
            return
        at = max(self._heard(running.instance), running.there)
        if running.instance.faults is not None:
            at = running.instance.faults.cut(at)
        ends = at + self._simulation.overhead
        if ends < running.ends:
            running.ends = ends
            self._at(ends, partial(self._end_unit, running, finished=False))

    def _verify(self, verify: Verify) -> None:
        instance, role = self._instances[verify.instance], verify.role
        ends = self._ends(instance, role, 1, self._there(instance, role, 1))
        end = partial(self._scheduler.unit_verified, unit=verify.unit, right=True)
        self._at(ends, lambda: self._carry_out(end(self._now)))

    def _there(self, instance: Instance, role: str, rows: int) -> float:
        """Return when a unit of this role that is sent now arrives."""
        return self._now

    def _heard(self, instance: Instance) -> float:
        """Return when the instance hears a message that is sent now."""
        return self._now

    def _recycle(self, recycle: Recycle) -> None:
        self._result.recycled[recycle.reason] += 1
        self._at(self._now, partial(self._replace, self._instances[recycle.instance]))

    def _answered(self, answer: Answer) -> None:
        self._latencies[answer.query] = self._now - self._arrivals[answer.query]
        self._doubts[answer.query] = answer.doubt
        self._end(answer.query, _NUMBERS[answer.source])

    def _end(self, query: int, source: int) -> None:
        self._sources[query] = source
        self._ended += 1

    def _wake_at(self, wake: WakeAt) -> None:
        self._wake_time = wake.time
        self._at(wake.time, partial(self._wake, wake.time))
