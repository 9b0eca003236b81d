"""The effect of a fault plan on the units of one worker. Times are since injection began."""

import heapq
from math import inf
from random import Random

from parity_models.emulation.distributions import SLICE, Exponential, SlicedRandom, Spells
from parity_models.emulation.fault_plan import FaultPlan, Neighbours, Shuffles, among, course_of


class Transfers:
    """The course of a plan's shuffles.

    It is drawn as far as needed; a worker's times of calls must not decrease. With `only`, just the
    transfers of this worker are remembered and can be counted.
    """

    def __init__(self, shuffles: Shuffles, seed: int, only: int | None = None) -> None:
        self._shuffles = shuffles
        self._only = only
        self._lanes = [Random(f"{seed}/shuffle {lane}") for lane in range(shuffles.transfers)]
        self._next = [(0.0, lane) for lane in range(shuffles.transfers)]
        self._spells: dict[int, list[tuple[float, float]]] = {}

    def active(self, worker: int, time: float) -> int:
        """Return the number of transfers at `time` that have the worker at an end."""
        self._draw_until(time)
        spells = [spell for spell in self._spells.get(worker, ()) if spell[1] > time]
        self._spells[worker] = spells
        return sum(start <= time for start, _ in spells)

    def _draw_until(self, time: float) -> None:
        while self._next[0][0] <= time:
            start, lane = self._next[0]
            rng = self._lanes[lane]
            length = self._shuffles.length.draw(rng)
            if start == 0:
                length *= rng.random()  # as if it had begun before, so that lanes do not march
            heapq.heapreplace(self._next, (start + max(length, SLICE), lane))
            for worker in rng.sample(range(self._shuffles.workers), 2):
                if self._only in (None, worker):
                    self._spells.setdefault(worker, []).append((start, start + length))


class _Neighbour:
    """Another tenant's queue at one worker's accelerator. Times of calls must not decrease."""

    def __init__(self, neighbours: Neighbours, rng: Random) -> None:
        self._neighbours = neighbours
        self._rng = rng
        self._next = rng.expovariate(neighbours.rate)
        self.free = 0.0

    def wait(self, time: float) -> float:
        """Return when the accelerator is free for a unit that arrives at `time`."""
        while self._next <= time:
            took = self._neighbours.service_time.draw(self._rng)
            self.free = max(self.free, self._next) + took
            self._next += self._rng.expovariate(self._neighbours.rate)
        return max(time, self.free)


class WorkerFaults:
    """The effect of a plan on the units of one worker.

    `transfers`, the course of the plan's shuffles, may be shared by workers in one process.
    """

    def __init__(self, plan: FaultPlan, worker: int, transfers: Transfers | None = None) -> None:
        self._plan = plan
        self._worker = worker
        self._unit = SlicedRandom(f"{plan.seed}/{worker}/units")
        self._slow: Spells | None = None
        self._paused: Spells | None = None
        self._neighbour: _Neighbour | None = None
        self._kills = plan.kill_times(worker)
        self._last_kill = self._next_kill = -inf
        self.poison = plan.poison
        """The first element of inputs that kill the worker, if any."""
        if plan.shuffles is not None and transfers is None:
            transfers = Transfers(plan.shuffles, plan.seed, worker)
        self._transfers = transfers
        self._held = 0.0
        self._paused_in: list[tuple[float, float]] = []
        slow, pauses, neighbours = plan.slowdowns, plan.pauses, plan.neighbours
        if slow is not None and among(worker, slow.workers):
            rng = plan.rng(course_of(slow, worker), "slowdowns")
            between, length = Exponential(slow.mean_between), Exponential(slow.mean_length)
            self._slow = Spells(rng, between, length)
        if pauses is not None and among(worker, pauses.workers):
            rng = plan.rng(course_of(pauses, worker), "pauses")
            self._paused = Spells(rng, Exponential(pauses.mean_between), pauses.length)
        if neighbours is not None and worker in neighbours.workers:
            self._neighbour = _Neighbour(neighbours, plan.rng(worker, "neighbour"))

    def files(self, began: float, role: str) -> list[str]:
        """Return the ONNX files of which a unit of `role` runs the first that exists."""
        return [
            lie.file
            for lie in self._plan.lies
            if (lie.worker, lie.role) == (self._worker, role)
            and lie.start <= began < lie.start + lie.length
        ]

    def computing_time(self, began: float, role: str) -> float:
        """Return the least time that a unit of `role` that began at `began` has to compute."""
        if began < 0 or not self._plan.computing:
            return 0.0
        return self._service(self._rng(began), role) * self._factor(began)

    def release(self, began: float, done: float, role: str = "") -> float:
        """Return when a unit that began at `began` and was done at `done` may be reported.

        Must be called in the order of time: no unit begins before the one before is released.
        """
        if began < 0:
            return done
        rng, plan = self._rng(began), self._plan
        service, factor = self._service(rng, role), self._factor(began)
        # Emulated service times take the place of what really ran.
        busy = max(done - began, service * factor) if service else (done - began) * factor
        delay = 0.0
        if plan.slowdowns is not None and self._is_slow(began):
            delay += plan.slowdowns.delay.draw(rng)
        if self._transfers is not None and plan.shuffles is not None:
            for _ in range(self._transfers.active(self._worker, began)):
                delay += plan.shuffles.delay.draw(rng)
        if self._neighbour is not None:
            began = self._neighbour.wait(began)
        self._held, end = began + delay, began + delay + busy
        self._paused_in.clear()
        if self._paused is not None:
            start, stop = self._paused.after(began)
            while start < end:
                start = max(start, began)
                self._paused_in.append((start, stop))
                end += stop - start
                start, stop = self._paused.after(stop)
        if self._neighbour is not None:
            self._neighbour.free = end
        return end

    def cut(self, at: float) -> float:
        """Return when the last released unit may be reported if it is cancelled at `at`.

        Its computation ends then. Delays, pauses and neighbours are not its work, and hold it
        nevertheless.
        """
        end = self._held
        for start, stop in self._paused_in:
            if start < end:
                end += stop - start
        end = max(end, at)
        end = max([end, *(stop for start, stop in self._paused_in if start <= end < stop)])
        if self._neighbour is not None:
            self._neighbour.free = end
        return end

    def _is_slow(self, time: float) -> bool:
        return self._slow is not None and self._slow.after(time)[0] <= time

    def _factor(self, began: float) -> float:
        """Return the factor of a unit's usual time."""
        plan, factor = self._plan, 1.0
        if plan.generations:
            factor = plan.generations[self._worker % len(plan.generations)]
        if plan.degradation is not None:
            factor *= plan.degradation.at(self._worker, began)
        if plan.cold_start is not None:
            while self._next_kill <= began:
                self._last_kill, self._next_kill = self._next_kill, next(self._kills, inf)
            warm = min(1.0, (began - self._last_kill) / plan.cold_start.length)
            factor *= 1.0 + (plan.cold_start.factor - 1.0) * (1.0 - warm)
        if plan.slowdowns is not None and self._is_slow(began):
            factor *= plan.slowdowns.factor
        return factor

    def _rng(self, began: float) -> Random:
        self._unit.begin(int(began // SLICE))
        return self._unit

    def _service(self, rng: Random, role: str) -> float:
        service = self._plan.service_times.get(role, self._plan.service_time)
        return 0.0 if service is None else service.draw(rng)
