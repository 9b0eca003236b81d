"""Simulated cores that instances share with each other, the server, its client, and others.

The server is one thread, and so is its client: each does one thing at a time, in order. So where
cores are slow, a report waits for the reports before it although the cores are idle half of the
time, and each redundant unit makes all others wait.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from parity_models.emulation import Spells
from parity_models.scheduling import Answer, Run
from parity_models.scheduling.front_door import MEASURE_INTERVAL
from parity_models.simulation import Simulation
from parity_models.simulation.simulator import Instance, Running
from parity_models_lab.contention.processor import PERIOD, Hogs
from parity_models_lab.latency.link import DriverOnLinks, Links

At = Callable[[float, Callable[[], None]], None]
"""Schedules a callback for a time."""

EXACT = 1e-9
"""Seconds of work that are as good as none."""


@dataclass(frozen=True)
class Cores:
    """The cores of one machine. Times in seconds of a core.

    Where there are `hogs`, these compute in spells, and instance i is on core i modulo `count`;
    else instances go where there is room, as server and client do. Jobs on a core at the same time
    have equal shares of it. Models compute on the cores, unless units are `waiting` for
    accelerators of their own.

    `serving` is the time that client and server compute for a query of one unit. The client's
    thread takes half of it, before the query is sent and after its answer is back; the server's
    thread takes an eighth each for the request, for sending a unit, for its report, and for the
    answer. `unseen` is computed besides, and nothing waits for it. `unit` is the time that an
    instance computes for a unit besides its service, half of it before.

    With a `quota`, jobs together get `quota` cores' time in each PERIOD, and then none until the
    next one begins, as in a control group or a container with a processor limit. The client is not
    in that group, and has a core to itself.
    """

    count: int
    serving: float = 0.0
    unseen: float = 0.0
    unit: float = 0.0
    hogs: Hogs | None = None
    waiting: bool = False
    quota: float = inf


class Job:
    """A computation on a core."""

    __slots__ = ("core", "done", "stopped")

    def __init__(self, core: "_Core", done: Callable[[float], None]) -> None:
        self.core = core
        self.done = done
        self.stopped = False


class Thread:
    """A thread that does one thing after the other, each on the core that is least busy."""

    def __init__(self, least_busy: Callable[[float], "_Core"]) -> None:
        self._least_busy = least_busy
        self._queue: deque[tuple[float, Callable[[float], None]]] = deque()
        self._runs = False
        self._since = self._busy = 0.0

    def busy(self, now: float) -> float:
        """Return the seconds until now in which it computed or waited for a core."""
        return self._busy + (now - self._since) * self._runs

    def do(self, now: float, work: float, done: Callable[[float], None]) -> None:
        """Compute for `work` seconds of a core after all else; call `done` with the time."""
        self._queue.append((work, done))
        if not self._runs:
            self._runs, self._since = True, now
            self._next(now)

    def _next(self, now: float) -> None:
        while self._queue:
            work, done = self._queue.popleft()
            if work:
                self._least_busy(now).start(now, work, partial(self._done, done))
                return
            done(now)
        self._busy = self.busy(now)
        self._runs = False

    def _done(self, done: Callable[[float], None], now: float) -> None:
        done(now)
        self._next(now)


class CpuModel:
    """All computation on the cores. Times of calls must not decrease."""

    def __init__(self, cores: Cores, seed: int, at: At) -> None:
        apart = cores.count if cores.hogs else 1
        courses: list[list[Spells]] = [[] for _ in range(apart)]
        if cores.hogs:
            for number in range(apart * cores.hogs.each):
                courses[number % apart].append(cores.hogs.spells(seed, number))
        self._cores = [
            _Core(cores.count // apart, cores.quota / apart, spells, at) for spells in courses
        ]
        own = _Core(1, inf, [], at)
        self.server = Thread(self.least_busy)
        self.client = Thread(self.least_busy if cores.quota == inf else lambda now: own)

    def run(self, now: float, instance: int, work: float, done: Callable[[float], None]) -> Job:
        """Have an instance compute for `work` seconds of a core."""
        return self._cores[instance % len(self._cores)].start(now, work, done)

    def least_busy(self, now: float) -> "_Core":
        """Return the core with the fewest jobs."""
        return min(self._cores, key=lambda core: core.busy(now))

    def stop(self, now: float, job: Job) -> None:
        """End a job before it is done."""
        job.core.stop(now, job)


class _Core:
    """One or several cores with one queue.

    `_each` is how many seconds a job has had that computed from the beginning on; so the order in
    which jobs are done does not change when others come or go.
    """

    def __init__(self, cores: int, quota: float, antagonists: list[Spells], at: At) -> None:
        self._cores = cores
        self._grant = self._left = quota * PERIOD
        self._period_ends = PERIOD if quota < inf else inf
        self._at = at
        self._antagonists = antagonists
        self._disturbing = 0
        self._turn = inf  # when the next antagonist begins or ends
        self._now = 0.0
        self._each = 0.0
        self._jobs: list[tuple[float, int, Job]] = []
        self._computing = 0
        self._order = 0
        self._look_at_antagonists()

    def busy(self, now: float) -> int:
        """Return how many compute."""
        self._advance(now)
        return self._computing + self._disturbing

    @property
    def _slowdown(self) -> float:
        """The factor by which all jobs take longer now than alone."""
        if not self._left:
            return inf
        return max(1.0, (self._computing + self._disturbing) / self._cores)

    @property
    def _exhausted_at(self) -> float:
        """When the quota of this period will be used up."""
        if not self._computing or not self._left:
            return inf
        return self._now + self._left / min(self._computing, self._cores)

    def start(self, now: float, work: float, done: Callable[[float], None]) -> Job:
        self._advance(now)
        self._order += 1
        job = Job(self, done)
        heapq.heappush(self._jobs, (self._each + work, self._order, job))
        self._computing += 1
        self._await()
        return job

    def stop(self, now: float, job: Job) -> None:
        if not job.stopped:
            self._advance(now)
            job.stopped = True
            self._computing -= 1
            self._await()

    def _advance(self, now: float) -> None:
        while (change := min(self._turn, self._period_ends, self._exhausted_at)) <= now:
            self._pass(change)
            if change == self._turn:
                self._look_at_antagonists()
            elif change == self._period_ends:
                self._left = self._grant
                self._period_ends += PERIOD * (1 + (now - change) // PERIOD * (not self._computing))
            else:
                self._left = 0.0
        self._pass(now)

    def _pass(self, until: float) -> None:
        if self._computing and self._left:
            passed = until - self._now
            self._each += passed / self._slowdown
            self._left = max(0.0, self._left - passed * min(self._computing, self._cores))
        self._now = until

    def _look_at_antagonists(self) -> None:
        courses = [each.after(self._now) for each in self._antagonists]
        self._disturbing = sum(start <= self._now for start, _ in courses)
        turns = (stop if start <= self._now else start for start, stop in courses)
        self._turn = min(turns, default=inf)

    def _await(self) -> None:
        """Look again when the first job may be done, or the speed changes."""
        while self._jobs and self._jobs[0][2].stopped:
            heapq.heappop(self._jobs)
        if self._jobs:
            left = (self._jobs[0][0] - self._each) * self._slowdown if self._left else inf
            self._order += 1
            time = min(self._now + left, self._turn, self._period_ends)
            self._at(time, partial(self._look, self._order, time))

    def _look(self, order: int, now: float) -> None:
        if order != self._order:
            return  # a job has begun or stopped since
        self._advance(now)
        done: list[Job] = []
        while self._jobs and self._jobs[0][0] <= self._each + EXACT:
            job = heapq.heappop(self._jobs)[2]
            if not job.stopped:
                job.stopped = True
                self._computing -= 1
                done.append(job)
        self._await()
        for job in done:
            job.done(now)


class DriverOnCores(DriverOnLinks):
    """A driver in which models, server and client compute on the same cores.

    The time of a unit shows only when it is done, and the scheduler hears everything through the
    server's one thread.
    """

    def __init__(
        self, cores: Cores, links: Links | None, simulation: Simulation, *others: Any
    ) -> None:
        self._cores = cores
        self._cpu = CpuModel(cores, simulation.faults.seed, self._at)
        self._jobs: dict[int, Job] = {}  # by unit, of those that run
        self._busy = 0.0
        super().__init__(links, simulation, *others)
        self._at(MEASURE_INTERVAL, partial(self._tick, MEASURE_INTERVAL))

    def _tick(self, due: float) -> None:
        self._serve(partial(self._measure, due), 1 / 64, self._now)

    def _measure(self, due: float) -> None:
        """Report the delay of the server's timer and how busy its thread was."""
        busy, lag = self._cpu.server.busy(self._now), self._now - due
        share = (busy - self._busy) / (MEASURE_INTERVAL + lag)
        self._busy, due = busy, self._now + MEASURE_INTERVAL
        self._at(due, partial(self._tick, due))
        self._carry_out(self._scheduler.process_measured(self._now, lag, share))

    def _admit(self, query: int) -> None:
        if self._cores.unseen:
            self._cpu.least_busy(self._now).start(self._now, self._cores.unseen, lambda now: None)
        received = partial(self._serve, partial(super()._admit, query), 1 / 8)
        self._cpu.client.do(self._now, self._cores.serving / 4, received)

    def _answered(self, answer: Answer) -> None:
        work, done = self._cores.serving / 4, partial(super()._answered, answer)
        sent = partial(self._cpu.client.do, work=work, done=lambda now: done())
        self._cpu.server.do(self._now, self._cores.serving / 8, sent)

    def _finish(self, run: Run, ended: float) -> None:
        self._serve(partial(super()._finish, run, ended), 1 / 8, self._now)

    def _cut(self, unit: int) -> None:
        self._serve(partial(super()._cut, unit), 1 / 8, self._now)

    def _pass_time(self) -> None:
        self._serve(super()._pass_time, 1 / 64, self._now)

    def _serve(self, done: Callable[[], None], share: float, now: float) -> None:
        self._cpu.server.do(now, share * self._cores.serving, lambda now: done())

    def _send(self, running: Running) -> None:
        self._serve(partial(super()._send, running), 1 / 8, self._now)

    def _begin(self, running: Running) -> None:
        self._at(running.there, partial(self._compute, running))

    def _compute(self, running: Running) -> None:
        run, instance = running.run, running.instance
        if run.unit not in self._running or run.instance not in self._instances:
            return  # it was cancelled, or its instance is gone
        work, unit = self._takes(run.role, len(run.subjects)), self._cores.unit
        if instance.faults is not None:
            work += instance.faults.computing_time(running.there, run.role)
        if self._cores.waiting:
            self._run_on(running, unit / 2, partial(self._wait, running, work))
        else:
            self._run_on(running, work + unit, partial(self._release, running))

    def _run_on(self, running: Running, work: float, done: Callable[[float], None]) -> None:
        job = self._cpu.run(self._now, running.instance.slot, work, done)
        self._jobs[running.run.unit] = job

    def _wait(self, running: Running, service: float, now: float) -> None:
        """The unit's accelerator is at work; then the instance computes once more."""
        faults, ends = running.instance.faults, now + service
        if faults is not None:
            ends = faults.release(now, ends, running.run.role)
        running.ends = ends
        self._at(ends, partial(self._waited, running))

    def _waited(self, running: Running) -> None:
        if not running.over:
            self._run_on(running, self._cores.unit / 2, partial(self._finished, running))

    def _finished(self, running: Running, now: float) -> None:
        running.ends = now + self._simulation.overhead
        self._at(running.ends, partial(self._end_unit, running))

    def _end_unit(self, running: Running, *, finished: bool = True) -> None:
        super()._end_unit(running, finished=finished)
        self._jobs.pop(running.run.unit, None)

    def _stop(self, running: Running, at: float) -> None:
        self._at(at, partial(self._on_cancel, running))

    def _on_cancel(self, running: Running) -> None:
        """The instance hears that its unit is cancelled."""
        job, waiting = self._jobs.get(running.run.unit), self._cores.waiting
        faults = running.instance.faults
        if running.run.unit not in self._running or running.over or job is None:
            return
        computing = not job.stopped
        self._cpu.stop(self._now, job)
        ends = self._now
        if faults is not None:
            if computing and not waiting:
                faults.release(running.there, ends, running.run.role)
            if not (computing and waiting):
                ends = faults.cut(ends)
        if computing or ends < running.ends:
            running.ends = ends + self._simulation.overhead
            self._at(running.ends, partial(self._end_unit, running, finished=False))

    def _replace(self, instance: Instance) -> None:
        for unit, running in self._running.items():
            if running.instance is instance and unit in self._jobs:
                self._cpu.stop(self._now, self._jobs[unit])
        super()._replace(instance)
