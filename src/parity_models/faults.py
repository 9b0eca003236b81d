"""Faults injected on purpose, for demonstrations and tests: slow, paused, killed and lying workers.

A plan is a small JSON document. What it does to a worker depends on nothing but the plan, the
worker's number and the time since injection began: neither on the load nor on what the worker
did before, so that whatever is compared meets the same faults, and a worker that was restarted
goes on where its predecessor would be. Times are in seconds.
"""

import heapq
from collections.abc import Iterator, Sequence
from math import log
from pathlib import Path
from random import Random
from typing import Annotated

import msgspec

from parity_models.errors import FaultPlanError

MAX_PLAN_BYTES = 1 << 20
"""A longer plan is not read."""

MAX_MEASURED = 100_000
"""Times that an empirical distribution holds at most."""

SLICE = 0.001
"""Units of one worker that begin within the same slice of time get the same drawn times."""

Duration = Annotated[float, msgspec.Meta(ge=0, le=86400)]
Spell = Annotated[float, msgspec.Meta(ge=0.001, le=86400)]


class Constant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="constant"):
    """Always `seconds`."""

    seconds: Duration

    def draw(self, rng: Random) -> float:
        return self.seconds


class Uniform(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="uniform"):
    """Anything from `low` to `high`, alike."""

    low: Duration
    high: Duration

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not be above high ({self.high})")

    def draw(self, rng: Random) -> float:
        return rng.uniform(self.low, self.high)


class Exponential(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="exponential"):
    """Memoryless, with this mean."""

    mean: Duration

    def draw(self, rng: Random) -> float:
        return self.mean * rng.expovariate(1.0)


class LogNormal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="lognormal"):
    """Half below `median`; `sigma` is the standard deviation of the logarithm."""

    median: Spell
    sigma: Annotated[float, msgspec.Meta(ge=0, le=5)]

    def draw(self, rng: Random) -> float:
        return rng.lognormvariate(log(self.median), self.sigma)


class Empirical(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="empirical"):
    """One of `seconds`, each as likely as the others: times as they were measured."""

    seconds: Annotated[tuple[Duration, ...], msgspec.Meta(min_length=1, max_length=MAX_MEASURED)]

    def draw(self, rng: Random) -> float:
        return rng.choice(self.seconds)


Distribution = Constant | Uniform | Exponential | LogNormal | Empirical


class Slowdowns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Spells in which every unit takes a drawn `delay` longer, as beside a noisy neighbour.

    Spells and the times between them are exponential; `mean_between` 0 is always slow.
    `workers` None: all of them, each at its own times.
    """

    mean_between: Duration
    mean_length: Spell
    delay: Distribution
    workers: tuple[int, ...] | None = None


class Pauses(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Spells of a drawn `length` in which the worker gets nowhere, as in a garbage collection.

    The times between them are exponential. `workers` None: all of them, each at its own times.
    """

    mean_between: Spell
    length: Distribution
    workers: tuple[int, ...] | None = None


class Shuffles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Background transfers: at all times `transfers` run, each between two workers drawn anew.

    A transfer lasts for a drawn `length`. Every unit of a worker takes a drawn `delay` longer
    for each transfer it is an end of (Kosaian et al., SOSP 2019, section 5.1). `workers` is how
    many there are to draw from: numbers 0 to workers - 1, of which not all need be there.
    """

    transfers: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    workers: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)]
    length: Distribution
    delay: Distribution


class Neighbours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another tenant's units on the accelerators of `workers`: of two units there, one waits.

    They come to each of these by a Poisson process of `rate` a second, and take a drawn
    `service_time`.
    """

    rate: Annotated[float, msgspec.Meta(gt=0, le=10_000)]
    service_time: Distribution
    workers: tuple[int, ...]


class Kill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """kill -9 of worker number `worker`, `at` seconds after injection began."""

    worker: Annotated[int, msgspec.Meta(ge=0)]
    at: Duration


class RandomKills(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """kill -9 at exponential times. `workers` None: all of them, each at its own times."""

    mean_between: Spell
    workers: tuple[int, ...] | None = None


class Lie(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A planned spell in which one worker runs the ONNX model in `file` in place of its own.

    The file is read where the worker runs. It is looked for before each unit, so that a spell can
    be begun and ended from outside: where it is not there, the worker runs its own. A worker that
    is restarted within the spell lies on, as one with a broken accelerator would.
    """

    worker: Annotated[int, msgspec.Meta(ge=0)]
    file: Annotated[str, msgspec.Meta(min_length=1)]
    start: Duration = 0.0
    length: Spell = 86400.0
    work: str = "deployed"


class FaultPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes wrong, when, and for whom; empty by default.

    `service_time`: a unit takes at least this long, as if the worker had an accelerator that is
    busy meanwhile (it waits, and holds no core); `service_times` says otherwise for some works.
    `computing`: that time is spent computing instead, as a model does that has no accelerator.
    `poison`: a worker that runs an input whose first element is this value dies of it.
    """

    seed: int = 0
    service_time: Distribution | None = None
    service_times: dict[str, Distribution] = {}
    computing: bool = False
    slowdowns: Slowdowns | None = None
    pauses: Pauses | None = None
    shuffles: Shuffles | None = None
    neighbours: Neighbours | None = None
    kills: tuple[Kill, ...] = ()
    random_kills: RandomKills | None = None
    lies: tuple[Lie, ...] = ()
    poison: float | None = None

    def check(self, workers: int) -> None:
        """Raise FaultPlanError if the plan names a worker that is not one of 0..workers-1."""
        named = {kill.worker for kill in self.kills} | {lie.worker for lie in self.lies}
        for part in (self.slowdowns, self.pauses, self.neighbours, self.random_kills):
            named.update(part.workers or () if part else ())
        for worker in sorted(named):
            if not 0 <= worker < workers:
                raise FaultPlanError(
                    f"the fault plan names worker {worker}, but there are {workers}: "
                    f"they are numbered from 0 to {workers - 1}"
                )

    def kill_times(self, worker: int) -> Iterator[float]:
        """When the worker is killed, in seconds since injection began; may have no end."""
        planned = sorted(kill.at for kill in self.kills if kill.worker == worker)
        return heapq.merge(planned, self._random_kill_times(worker))

    def _random_kill_times(self, worker: int) -> Iterator[float]:
        if self.random_kills is None or not _among(worker, self.random_kills.workers):
            return
        rng = self.rng(worker, "kills")
        at = 0.0
        while True:
            at += self.random_kills.mean_between * rng.expovariate(1.0)
            yield at

    def rng(self, worker: int, purpose: str) -> Random:
        """Randomness that is the same in every process for the same plan and arguments."""
        return Random(f"{self.seed}/{worker}/{purpose}")


def load_fault_plan(source: str | Path) -> FaultPlan:
    """The plan in a JSON file, or in `source` itself if that begins with a brace.

    Raises FaultPlanError if it cannot be read or is not a plan.
    """
    if isinstance(source, str) and source.lstrip().startswith("{"):
        name, content = "the fault plan", source.encode()
    else:
        name, content = str(source), _read(Path(source))
    try:
        return msgspec.json.decode(content, type=FaultPlan)
    except (ValueError, RecursionError) as error:  # UTF-8 and nesting included
        raise FaultPlanError(
            f"{name} is not a fault plan: {error}; see docs/reference/faults.md"
        ) from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PLAN_BYTES + 1)
    except OSError as error:
        raise FaultPlanError(f"cannot read the fault plan {path}: {error.strerror}") from error
    if len(content) > MAX_PLAN_BYTES:
        raise FaultPlanError(f"{path} is longer than {MAX_PLAN_BYTES} bytes: not a fault plan")
    return content


class WorkerFaults:
    """What a plan does to the units of one worker. Times are since injection began.

    `transfers`, the course of the plan's shuffles, may be shared by workers in one process.
    """

    def __init__(self, plan: FaultPlan, worker: int, transfers: "Transfers | None" = None) -> None:
        self._plan = plan
        self._worker = worker
        self._slow: Spells | None = None
        self._delay: Distribution = Constant(0.0)
        self._paused: Spells | None = None
        self._neighbour: Neighbour | None = None
        self._shuffles = plan.shuffles
        self._lies = [lie for lie in plan.lies if lie.worker == worker]
        self.poison = plan.poison
        """The first element of inputs that the worker dies of, if any."""
        if plan.shuffles is not None and transfers is None:
            transfers = Transfers(plan.shuffles, plan.seed, worker)
        self._transfers = transfers
        slowdowns, pauses = plan.slowdowns, plan.pauses
        if slowdowns is not None and _among(worker, slowdowns.workers):
            between, length = (
                Exponential(slowdowns.mean_between),
                Exponential(slowdowns.mean_length),
            )
            self._slow = Spells(plan.rng(worker, "slowdowns"), between, length)
            self._delay = slowdowns.delay
        if pauses is not None and _among(worker, pauses.workers):
            between = Exponential(pauses.mean_between)
            self._paused = Spells(plan.rng(worker, "pauses"), between, pauses.length)
        if plan.neighbours is not None and worker in plan.neighbours.workers:
            self._neighbour = Neighbour(plan.neighbours, plan.rng(worker, "neighbour"))

    def files(self, began: float, work: str) -> list[str]:
        """The ONNX files, of which the first one that is there is run by a unit of `work` that
        began at `began`, in place of the worker's own."""
        return [
            lie.file
            for lie in self._lies
            if lie.work == work and lie.start <= began < lie.start + lie.length
        ]

    def computing_time(self, began: float, work: str) -> float:
        """How long a unit of `work` that began at `began` has to compute at least."""
        if began < 0 or not self._plan.computing:
            return 0.0
        return self._service(self._rng(began), work)

    def release(self, began: float, done: float, work: str = "") -> float:
        """When a unit of `work` that began at `began` and was done at `done` may be reported.

        Must be asked in the order of time: no unit begins before the one before is released.
        """
        if began < 0:
            return done
        rng = self._rng(began)
        busy = max(done - began, self._service(rng, work))
        if self._slow is not None and self._slow.after(began)[0] <= began:
            busy += self._delay.draw(rng)
        if self._transfers is not None and self._shuffles is not None:
            for _ in range(self._transfers.active(self._worker, began)):
                busy += self._shuffles.delay.draw(rng)
        if self._neighbour is not None:
            began = self._neighbour.wait(began)
        end = began + busy
        if self._paused is not None:
            start, stop = self._paused.after(began)
            while start < end:
                end += stop - max(start, began)
                start, stop = self._paused.after(stop)
        if self._neighbour is not None:
            self._neighbour.free = end
        return end

    def _rng(self, began: float) -> Random:
        return self._plan.rng(self._worker, f"unit {began // SLICE:.0f}")

    def _service(self, rng: Random, work: str) -> float:
        service = self._plan.service_times.get(work, self._plan.service_time)
        return 0.0 if service is None else service.draw(rng)


class Neighbour:
    """The other tenant's units on one worker's accelerator, first come, first served."""

    def __init__(self, neighbours: Neighbours, rng: Random) -> None:
        self._neighbours = neighbours
        self._rng = rng
        self._next = 0.0
        self.free = 0.0
        self._arrive()

    def wait(self, time: float) -> float:
        """When the accelerator is free for a unit that came at `time`; never decreasing."""
        while self._next <= time:
            took = self._neighbours.service_time.draw(self._rng)
            self.free = max(self.free, self._next) + took
            self._arrive()
        return max(time, self.free)

    def _arrive(self) -> None:
        self._next += self._rng.expovariate(self._neighbours.rate)


class Transfers:
    """The course of a plan's shuffles: which transfers run when, between whom.

    Drawn as far as asked for; each worker's times must not decrease. `only`: the one worker that
    will be asked about, so that nothing is remembered of the others; None: any.
    """

    def __init__(self, shuffles: Shuffles, seed: int, only: int | None = None) -> None:
        self._shuffles = shuffles
        self._only = only
        self._lanes = [Random(f"{seed}/shuffle {lane}") for lane in range(shuffles.transfers)]
        self._next = [(0.0, lane) for lane in range(shuffles.transfers)]
        self._spells: dict[int, list[tuple[float, float]]] = {}

    def active(self, worker: int, time: float) -> int:
        """Of how many transfers is the worker an end at `time`?"""
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


class Spells:
    """Gaps and spells by turns, from time 0 on; asked about times that never decrease."""

    def __init__(self, rng: Random, gap: Distribution, length: Distribution) -> None:
        self._rng = rng
        self._gap = gap
        self._length = length
        self._start = self._stop = 0.0

    def after(self, time: float) -> tuple[float, float]:
        """Start and end of the first spell that ends after `time`."""
        while self._stop <= time:
            self._start = self._stop + self._gap.draw(self._rng)
            self._stop = self._start + self._length.draw(self._rng)
        return self._start, self._stop


def _among(worker: int, workers: Sequence[int] | None) -> bool:
    return workers is None or worker in workers
