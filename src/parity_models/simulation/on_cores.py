"""Simulations in which models, server and client compute on the same cores."""

from collections.abc import Callable
from functools import cached_property, partial

from parity_models.simulation.cores import Computing, Cores
from parity_models.simulation.driver import Driver
from parity_models.simulation.instance import Instance, Running


class DriverOnCores(Driver):
    """As `Driver`, but how long a unit takes shows only when it is done, and the scheduler hears
    everything through the server's one thread."""

    @cached_property
    def _cores(self) -> Cores:
        assert self._simulation.cores is not None
        return self._simulation.cores

    @cached_property
    def _computing(self) -> Computing:
        return Computing(self._cores, self._simulation.faults.seed, self._at)

    # The server's thread and the client's

    def _ask(self, done: Callable[[], None]) -> None:
        computing = self._computing
        if self._cores.unseen:
            computing.least_busy(self._now).start(self._now, self._cores.unseen, _nothing)
        received = partial(self._serve, done, 1 / 8)
        computing.client.do(self._now, self._cores.serving / 4, received)

    def _respond(self, done: Callable[[], None]) -> None:
        computing, work = self._computing, self._cores.serving / 4
        sent = partial(computing.client.do, work=work, done=lambda now: done())
        computing.server.do(self._now, self._cores.serving / 8, sent)

    def _hear(self, done: Callable[[], None], *, of_unit: bool = False) -> None:
        self._serve(done, of_unit / 8, self._now)

    def _serve(self, done: Callable[[], None], share: float, now: float) -> None:
        self._computing.server.do(now, share * self._cores.serving, lambda now: done())

    # Units

    def _send(self, running: Running) -> None:
        self._serve(partial(self._sent, running), 1 / 8, self._now)

    def _sent(self, running: Running) -> None:
        super()._send(running)

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
        slot = running.instance.slot
        running.job = self._computing.run(self._now, slot, work, done)

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

    def _stop(self, running: Running, at: float) -> None:
        self._at(at, partial(self._on_cancel, running))

    def _on_cancel(self, running: Running) -> None:
        """The instance hears that its unit is cancelled."""
        job, faults, waiting = running.job, running.instance.faults, self._cores.waiting
        if running.run.unit not in self._running or running.over or job is None:
            return
        computing = not job.stopped
        self._computing.stop(self._now, job)
        ends = self._now
        if faults is not None:
            if computing and not waiting:
                faults.release(running.there, ends, running.run.role)
            if not (computing and waiting):
                ends = faults.cut(ends)
        if computing or ends < running.ends:
            running.ends = ends + self._simulation.overhead
            self._at(running.ends, partial(self._end_unit, running, finished=False))

    def _replace(self, instance: Instance, then: Callable[[], None] | None = None) -> None:
        for running in self._running.values():
            if running.instance is instance and running.job is not None:
                self._computing.stop(self._now, running.job)
        super()._replace(instance, then)


def _nothing(now: float) -> None:
    """Nothing waits for this."""
