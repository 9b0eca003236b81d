"""A simulator that drives the very `Scheduler` that serves.

SimPy keeps the calendar. An instance takes as long for a unit as its service time and the fault
plan say (`faults.WorkerFaults`, the code that real workers obey); the plan's timeline and the
arrivals depend on seeds alone, so that policies compared meet the same load and the same faults.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from parity_models.faults import Distribution, FaultPlan, Transfers, WorkerFaults
from parity_models.scheduling import (
    DEPLOYED,
    Action,
    Answer,
    Decode,
    Fail,
    Policy,
    Recycle,
    RecycleReason,
    Run,
    Scheduler,
    SchedulerConfig,
    Source,
    Verify,
    WakeAt,
)
from parity_models.scheduling.dispatch import Dispatch

SOURCES = tuple(Source)
"""What the numbers in SimulationResult.sources stand for."""

FAILED = -1
"""The source of a query that failed."""


@dataclass(frozen=True)
class Simulation:
    """What is simulated. Times in seconds.

    `arrivals` (n,) are the times at which queries arrive, in order. `service` is how long a unit
    takes, by work; a work that is not named takes as long as DEPLOYED. `restart` is how long an
    instance that was killed or recycled is away. `overhead` is added to every dispatch (the
    engine's round trip). Instance i is on node i modulo `nodes`; None: each has a node to itself.
    """

    arrivals: NDArray[np.float64]
    instances: int
    parity_instances: int
    service: Mapping[str, Distribution]
    faults: FaultPlan = field(default_factory=FaultPlan)
    restart: float = 1.0
    overhead: float = 0.0
    nodes: int | None = None
    config: SchedulerConfig = field(default_factory=SchedulerConfig)
    seed: int = 0


@dataclass(frozen=True)
class SimulationResult:
    """What became of the queries, in order of arrival.

    `latencies` (n,) in seconds, `sources` (n,) indices into SOURCES or FAILED. `units` and `busy`
    are how many units ran and how many instance-seconds they took, by work. `recycled` are how many
    instances were recycled, by reason.
    """

    latencies: NDArray[np.float64]
    sources: NDArray[np.int8]
    units: dict[str, int]
    busy: dict[str, float]
    recycled: dict[RecycleReason, int]


def simulate(
    simulation: Simulation,
    policy: Policy,
    dispatch: Dispatch | None = None,
    progress: Callable[[int], None] | None = None,
) -> SimulationResult:
    """Run the simulation to its end under a policy and a dispatch rule.

    `progress` is called now and then with the number of queries that have arrived.
    """
    return _Driver(simulation, policy, dispatch, progress).run()


class _Instance:
    """An imagined instance: number `slot` of the plan, in its `life`-th incarnation."""

    def __init__(self, slot: int, works: frozenset[str], faults: WorkerFaults | None) -> None:
        self.slot = slot
        self.works = works
        self.faults = faults
        self.life = 0

    @property
    def name(self) -> str:
        return f"{self.slot}.{self.life}" if self.life else f"{self.slot}"


class _Driver:
    def __init__(
        self,
        simulation: Simulation,
        policy: Policy,
        dispatch: Dispatch | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._simulation = simulation
        self._scheduler = Scheduler(policy, simulation.config, dispatch)
        self._env = simpy.Environment()
        self._random = Random(simulation.seed)
        self._progress = progress
        count = len(simulation.arrivals)
        self._result = SimulationResult(
            np.full(count, np.nan), np.full(count, FAILED, np.int8), {}, {}, {}
        )
        self._arrived = 0
        self._ended = 0
        self._everything_ended = self._env.event()
        self._wake_time: float | None = None
        self._decoded: list[int] = []
        self._instances: dict[str, _Instance] = {}
        self._do: dict[type[Action], Callable[[Any], None]] = {
            Run: self._run,
            Verify: self._verify,
            Recycle: self._recycle,
            Decode: self._decode,
            Answer: self._answer,
            Fail: self._fail,
            WakeAt: self._wake_at,
        }
        works = policy.works(simulation.instances, simulation.parity_instances)
        plan = simulation.faults
        faulty = plan != FaultPlan(seed=plan.seed)
        transfers = Transfers(plan.shuffles, plan.seed) if plan.shuffles else None
        for slot, work in enumerate(works):
            faults = WorkerFaults(plan, slot, transfers) if faulty else None
            instance = _Instance(slot, work, faults)
            self._join(instance)
            if plan.kills or plan.random_kills:
                self._env.process(self._kill(instance))

    def run(self) -> SimulationResult:
        if len(self._simulation.arrivals):
            self._at(self._simulation.arrivals[0], self._arrive)
            self._env.run(self._everything_ended)
        return self._result

    def _at(self, time: float, callback: Callable[[], None]) -> None:
        timeout = self._env.timeout(max(0.0, time - self._env.now))
        timeout.callbacks.append(lambda _: callback())

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            do = self._do.get(type(action))
            if do is not None:
                do(action)
        while self._decoded:
            group = self._decoded.pop()
            self._carry_out(self._scheduler.decoded(self._env.now, group))

    # Events

    def _arrive(self) -> None:
        query = self._arrived
        self._arrived += 1
        if self._progress is not None and self._arrived % 1000 == 0:
            self._progress(self._arrived)
        self._carry_out(self._scheduler.queries_arrived(self._env.now, (query,), "query"))
        if self._arrived < len(self._simulation.arrivals):
            self._at(self._simulation.arrivals[self._arrived], self._arrive)

    def _finish(self, unit: int) -> None:
        self._carry_out(self._scheduler.unit_finished(self._env.now, unit))

    def _verified(self, unit: int) -> None:
        self._carry_out(self._scheduler.unit_verified(self._env.now, unit, True))

    def _wake(self, time: float) -> None:
        if time == self._wake_time:
            self._wake_time = None
            self._carry_out(self._scheduler.time_passed(self._env.now))

    def _join(self, instance: _Instance) -> None:
        self._instances[instance.name] = instance
        nodes = self._simulation.nodes
        node = None if nodes is None else str(instance.slot % nodes)
        joined = self._scheduler.instance_joined(self._env.now, instance.name, instance.works, node)
        self._carry_out(joined)

    def _kill(self, instance: _Instance) -> Generator[simpy.Event, None, None]:
        for time in self._simulation.faults.kill_times(instance.slot):
            if time < self._env.now:  # it was away, and cannot be killed
                continue
            yield self._env.timeout(time - self._env.now)
            yield self._env.process(self._replace(instance))

    def _replace(self, instance: _Instance) -> Generator[simpy.Event, None, None]:
        """The instance leaves, and joins again under another name."""
        if self._instances.pop(instance.name, None) is None:  # it has left already
            return
        self._carry_out(self._scheduler.instance_left(self._env.now, instance.name))
        yield self._env.timeout(self._simulation.restart)
        instance.life += 1
        self._join(instance)

    # Actions

    def _run(self, run: Run) -> None:
        took = self._run_time(run.instance, run.work)
        units, busy = self._result.units, self._result.busy
        units[run.work] = units.get(run.work, 0) + 1
        busy[run.work] = busy.get(run.work, 0.0) + took
        self._at(self._env.now + took, partial(self._finish, run.unit))

    def _verify(self, verify: Verify) -> None:
        took = self._run_time(verify.instance, verify.work)
        self._at(self._env.now + took, partial(self._verified, verify.unit))

    def _run_time(self, instance: str, work: str) -> float:
        """How long a unit of this work that begins now takes there."""
        now = self._env.now
        service = self._simulation.service
        took = service.get(work, service[DEPLOYED]).draw(self._random) + self._simulation.overhead
        faults = self._instances[instance].faults
        return took if faults is None else faults.release(now, now + took, work) - now

    def _recycle(self, recycle: Recycle) -> None:
        recycled = self._result.recycled
        recycled[recycle.reason] = recycled.get(recycle.reason, 0) + 1
        self._env.process(self._replace(self._instances[recycle.instance]))

    def _decode(self, decode: Decode) -> None:
        self._decoded.append(decode.group)

    def _answer(self, answer: Answer) -> None:
        arrived = self._simulation.arrivals[answer.query]
        self._result.latencies[answer.query] = self._env.now - arrived
        self._end(answer.query, SOURCES.index(answer.source))

    def _fail(self, fail: Fail) -> None:
        self._end(fail.query, FAILED)

    def _end(self, query: int, source: int) -> None:
        self._result.sources[query] = source
        self._ended += 1
        if self._ended == len(self._simulation.arrivals):
            self._everything_ended.succeed()

    def _wake_at(self, wake: WakeAt) -> None:
        self._wake_time = wake.time
        self._at(wake.time, partial(self._wake, wake.time))
