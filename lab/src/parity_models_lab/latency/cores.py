"""Simulated cores that instances share with each other, the server and its client.

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

from parity_models.scheduling.actions import Answer, Run
from parity_models.scheduling.process_load import MEASURE_INTERVAL
from parity_models.simulation.simulation import Instance, Running, Simulation
from parity_models_lab.contention.quota import PERIOD
from parity_models_lab.latency.link import DriverOnLinks, Links

EXACT = 1e-9
"""Seconds of work that count as none."""


@dataclass(frozen=True)
class Cores:
    """The cores of one machine. Times in seconds of a core.

    Jobs that run at the same time have equal shares. Models are `computing` on the cores, or wait
    for accelerators of their own. Client and server compute for `serving` seconds for a query of
    one unit: half of it is the client's, before and after; the server's thread takes an eighth each
    for the request, for sending a unit, for its report, and for the answer. An instance computes
    for `unit` seconds more than its service, half of it before. The defaults were measured in real
    trials without redundancy. With a `quota`, jobs together get `quota` cores' time in each PERIOD,
    as in a control group with a processor limit; the client has a core to itself then.
    """

    count: int = 2
    serving: float = 0.77e-3
    unit: float = 0.47e-3
    computing: bool = False
    quota: float = inf


@dataclass(slots=True)
class Job:
    """A computation; `over` once it is done or stopped."""

    done: Callable[[float], None]
    over: bool = False


class Processor:
    """`count` cores with one queue, which compute `quota` seconds a second together.

    `_each` is how many seconds a job has had that computed from the beginning on; so the order in
    which jobs are done does not change when others come or go. `at` schedules a callback for a
    time. Times of calls must not decrease.
    """

    def __init__(
        self, count: int, quota: float, at: Callable[[float, Callable[[], None]], None]
    ) -> None:
        self._count = count
        self._at = at
        self._grant = self._left = quota * PERIOD
        self._period_ends = PERIOD if quota < inf else inf
        self._now = self._each = 0.0
        self._jobs: list[tuple[float, int, Job]] = []
        self._computing = self._order = 0

    def start(self, now: float, work: float, done: Callable[[float], None]) -> Job:
        """Compute for `work` seconds of a core; call `done` with the time."""
        self._advance(now)
        self._order += 1
        job = Job(done)
        heapq.heappush(self._jobs, (self._each + work, self._order, job))
        self._computing += 1
        self._await()
        return job

    def stop(self, now: float, job: Job) -> None:
        """End a job before it is done."""
        if not job.over:
            self._advance(now)
            job.over = True
            self._computing -= 1
            self._await()

    @property
    def _slowdown(self) -> float:
        """The factor by which all jobs take longer now than alone."""
        return max(1.0, self._computing / self._count) if self._left else inf

    def _advance(self, now: float) -> None:
        while True:
            used_up = inf
            if self._computing and self._left:
                used_up = self._now + self._left / min(self._computing, self._count)
            change = min(self._period_ends, used_up)
            if change > now:
                break
            self._pass(change)
            if change == self._period_ends:
                self._left = self._grant
                self._period_ends += PERIOD * (1 + (now - change) // PERIOD * (not self._computing))
            else:
                self._left = 0.0
        self._pass(now)

    def _pass(self, until: float) -> None:
        if self._computing and self._left:
            passed = until - self._now
            self._each += passed / self._slowdown
            self._left = max(0.0, self._left - passed * min(self._computing, self._count))
        self._now = until

    def _await(self) -> None:
        """Look again when the first job may be done, or the speed changes."""
        while self._jobs and self._jobs[0][2].over:
            heapq.heappop(self._jobs)
        if self._jobs:
            left = (self._jobs[0][0] - self._each) * self._slowdown if self._left else inf
            self._order += 1
            time = min(self._now + left, self._period_ends)
            self._at(time, partial(self._look, self._order, time))

    def _look(self, order: int, now: float) -> None:
        if order != self._order:
            return  # a job has begun or stopped since
        self._advance(now)
        done: list[Job] = []
        while self._jobs and self._jobs[0][0] <= self._each + EXACT:
            job = heapq.heappop(self._jobs)[2]
            if not job.over:
                job.over = True
                self._computing -= 1
                done.append(job)
        self._await()
        for job in done:
            job.done(now)


class Thread:
    """A thread that does one thing after the other on a processor."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
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
                self._processor.start(now, work, partial(self._done, done))
                return
            done(now)
        self._busy = self.busy(now)
        self._runs = False

    def _done(self, done: Callable[[float], None], now: float) -> None:
        done(now)
        self._next(now)


class DriverOnCores(DriverOnLinks):
    """A driver in which models, server and client compute on the same cores.

    The time of a unit shows only when it is done, and the scheduler hears everything through the
    server's one thread.
    """

    def __init__(
        self, cores: Cores, links: Links | None, simulation: Simulation, *others: Any
    ) -> None:
        self._cores = cores
        self._processor = Processor(cores.count, cores.quota, self._at)
        self._server = Thread(self._processor)
        apart = cores.quota < inf
        self._client = Thread(Processor(1, inf, self._at) if apart else self._processor)
        self._jobs: dict[int, Job] = {}  # by unit, of those that run
        self._busy = 0.0
        super().__init__(links, simulation, *others)
        self._at(MEASURE_INTERVAL, partial(self._tick, MEASURE_INTERVAL))

    def _tick(self, due: float) -> None:
        self._serve(partial(self._measure, due), 1 / 64)

    def _measure(self, due: float) -> None:
        """Report the delay of the server's timer and how busy its thread was."""
        busy, lag = self._server.busy(self._now), self._now - due
        share = (busy - self._busy) / (MEASURE_INTERVAL + lag)
        self._busy, due = busy, self._now + MEASURE_INTERVAL
        self._at(due, partial(self._tick, due))
        self._carry_out(self._scheduler.process_measured(self._now, lag, share))

    def _admit(self, query: int) -> None:
        admit = partial(super()._admit, query)
        self._client.do(self._now, self._cores.serving / 4, lambda now: self._serve(admit, 1 / 8))

    def _answered(self, answer: Answer) -> None:
        work, done = self._cores.serving / 4, partial(super()._answered, answer)
        self._serve(lambda: self._client.do(self._now, work, lambda now: done()), 1 / 8)

    def _finish(self, run: Run, ended: float) -> None:
        self._serve(partial(super()._finish, run, ended), 1 / 8)

    def _cut(self, unit: int) -> None:
        self._serve(partial(super()._cut, unit), 1 / 8)

    def _pass_time(self) -> None:
        self._serve(super()._pass_time, 1 / 64)

    def _serve(self, done: Callable[[], None], share: float) -> None:
        self._server.do(self._now, share * self._cores.serving, lambda now: done())

    def _send(self, running: Running) -> None:
        self._serve(partial(super()._send, running), 1 / 8)

    def _begin(self, running: Running) -> None:
        self._at(running.there, partial(self._compute, running))

    def _compute(self, running: Running) -> None:
        run, instance = running.run, running.instance
        if run.unit not in self._running or run.instance not in self._instances:
            return  # it was cancelled, or its instance is gone
        work, unit = self._takes(run.role, len(run.subjects)), self._cores.unit
        if instance.faults is not None:
            work += instance.faults.computing_time(running.there, run.role)
        if self._cores.computing:
            self._run_on(running, work + unit, partial(self._release, running))
        else:
            self._run_on(running, unit / 2, partial(self._wait, running, work))

    def _run_on(self, running: Running, work: float, done: Callable[[float], None]) -> None:
        self._jobs[running.run.unit] = self._processor.start(self._now, work, done)

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
        job = self._jobs.get(running.run.unit)
        faults = running.instance.faults
        if running.run.unit not in self._running or running.over or job is None:
            return
        computing = not job.over
        self._processor.stop(self._now, job)
        ends = self._now
        if faults is not None:
            if computing and self._cores.computing:
                faults.release(running.there, ends, running.run.role)
            if not computing or self._cores.computing:
                ends = faults.cut(ends)
        if computing or ends < running.ends:
            running.ends = ends + self._simulation.overhead
            self._at(running.ends, partial(self._end_unit, running, finished=False))

    def _replace(self, instance: Instance) -> None:
        for unit, running in self._running.items():
            if running.instance is instance and unit in self._jobs:
                self._processor.stop(self._now, self._jobs[unit])
        super()._replace(instance)
