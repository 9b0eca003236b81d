"""Simulations in which models, server and clients compute on the same cores."""

from collections.abc import Callable, Collection
from functools import cached_property, partial

from parity_models.simulation.cores import Computing
from parity_models.simulation.driver import Driver
from parity_models.simulation.instance import Instance, Running


class DriverOnCores(Driver):
    """As `Driver`, but how long a unit takes shows only when it is done."""

    @cached_property
    def _computing(self) -> Computing:
        assert self._simulation.cores is not None
        return Computing(self._simulation.cores, self._simulation.faults.seed, self._at)

    def _crowded(self, instances: Collection[str]) -> bool:
        return len(self._instances) > self._computing.count <= self._computing.units

    def _serve(self, done: Callable[[], None]) -> None:
        self._computing.serve(self._now, done)

    def _begin(self, running: Running) -> None:
        self._at(running.there, partial(self._compute, running))

    def _compute(self, running: Running) -> None:
        run, instance = running.run, running.instance
        if run.unit not in self._running or run.instance not in self._instances:
            return  # it was cancelled, or its instance is gone
        work = self._takes(run.role, len(run.subjects))
        if instance.faults is not None:
            work += instance.faults.computing_time(running.there, run.role)
        computed = partial(self._computed, running)
        running.job = self._computing.run(self._now, instance.slot, work, computed)

    def _computed(self, running: Running) -> None:
        self._release(running, self._now)
        self._count(running)

    def _count(self, running: Running) -> None:
        if running.counted:
            self._count_busy(running.run.role, running.ends - running.there)

    def _stop(self, running: Running, at: float) -> None:
        self._at(at, partial(self._hear, running))

    def _hear(self, running: Running) -> None:
        run, job, faults = running.run, running.job, running.instance.faults
        if run.unit not in self._running:
            return
        if job is None or job.stopped:
            super()._stop(running, self._now)
            return
        self._computing.stop(self._now, job)
        ends = self._now
        if faults is not None:
            faults.release(running.there, ends, run.role)
            ends = faults.cut(ends)
        running.ends = ends + self._simulation.overhead
        self._count(running)
        self._at(running.ends, partial(self._cut, run.unit))

    def _replace(self, instance: Instance, then: Callable[[], None] | None = None) -> None:
        for running in self._running.values():
            if running.instance is instance and running.job is not None:
                self._computing.stop(self._now, running.job)
        super()._replace(instance, then)
