"""What a plan does to the units of one worker."""

from random import Random

from parity_models.faults.distributions import SLICE, Constant, Distribution, Exponential
from parity_models.faults.fault_plan import FaultPlan, among
from parity_models.faults.neighbours import Neighbour
from parity_models.faults.shuffles import Transfers
from parity_models.faults.sliced_random import SlicedRandom
from parity_models.faults.slowness import course_of
from parity_models.faults.spells import Spells


class WorkerFaults:
    """What a plan does to the units of one worker. Times are since injection began.

    `transfers`, the course of the plan's shuffles, may be shared by workers in one process.
    """

    def __init__(self, plan: FaultPlan, worker: int, transfers: Transfers | None = None) -> None:
        self._plan = plan
        self._worker = worker
        self._unit = SlicedRandom(plan.seed_of(worker, "units"))
        self._slow: Spells | None = None
        self._delay: Distribution = Constant(0.0)
        self._slow_factor = 1.0
        self._pace = plan.pace(worker)
        self._paused: Spells | None = None
        self._neighbour: Neighbour | None = None
        self._shuffles = plan.shuffles
        self._lies = [lie for lie in plan.lies if lie.worker == worker]
        self.poison = plan.poison
        """The first element of inputs that the worker dies of, if any."""
        if plan.shuffles is not None and transfers is None:
            transfers = Transfers(plan.shuffles, plan.seed, worker)
        self._transfers = transfers
        self._held = 0.0
        self._paused_in: list[tuple[float, float]] = []
        slowdowns, pauses = plan.slowdowns, plan.pauses
        if slowdowns is not None and among(worker, slowdowns.workers):
            between, length = (
                Exponential(slowdowns.mean_between),
                Exponential(slowdowns.mean_length),
            )
            course = course_of(slowdowns, worker)
            self._slow = Spells(plan.rng(course, "slowdowns"), between, length)
            self._delay, self._slow_factor = slowdowns.delay, slowdowns.factor
        if pauses is not None and among(worker, pauses.workers):
            between = Exponential(pauses.mean_between)
            course = course_of(pauses, worker)
            self._paused = Spells(plan.rng(course, "pauses"), between, pauses.length)
        if plan.neighbours is not None and worker in plan.neighbours.workers:
            self._neighbour = Neighbour(plan.neighbours, plan.rng(worker, "neighbour"))

    def files(self, began: float, role: str) -> list[str]:
        """The ONNX files, of which the first one that is there is run by a unit of `role` that
        began at `began`, in place of the worker's own."""
        return [
            lie.file
            for lie in self._lies
            if lie.role == role and lie.start <= began < lie.start + lie.length
        ]

    def computing_time(self, began: float, role: str) -> float:
        """How long a unit of `role` that began at `began` has to compute at least."""
        if began < 0 or not self._plan.computing:
            return 0.0
        return self._service(self._rng(began), role) * self._factor(began)

    def release(self, began: float, done: float, role: str = "") -> float:
        """When a unit of `role` that began at `began` and was done at `done` may be reported.

        Must be asked in the order of time: no unit begins before the one before is released.
        """
        if began < 0:
            return done
        rng = self._rng(began)
        service, factor = self._service(rng, role), self._factor(began)
        # Where service times are emulated, what really ran is beside the point.
        busy = max(done - began, service * factor) if service else (done - began) * factor
        delay = 0.0
        if self._is_slow(began):
            delay += self._delay.draw(rng)
        if self._transfers is not None and self._shuffles is not None:
            for _ in range(self._transfers.active(self._worker, began)):
                delay += self._shuffles.delay.draw(rng)
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
        """When the unit that was released last may be reported, if it is cancelled at `at`.

        It computes no more from then on. Delays, pauses and neighbours hold it nevertheless: they
        are not its work.
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
        """How many times as long as usual a unit takes."""
        factor = 1.0 if self._pace is None else self._pace.at(began)
        return factor * self._slow_factor if self._is_slow(began) else factor

    def _rng(self, began: float) -> Random:
        self._unit.begin(int(began // SLICE))
        return self._unit

    def _service(self, rng: Random, role: str) -> float:
        service = self._plan.service_times.get(role, self._plan.service_time)
        return 0.0 if service is None else service.draw(rng)
