"""Emulated service times, slowness and failures, for real and simulated workers alike.

All slowness and failures follow from a fault plan, a small JSON document. Its effect on a worker
depends on the plan, the worker's number and the time since injection began, but not on the load or
on the worker's past. So all runs that are compared meet the same faults, and a restarted worker
continues where its predecessor would be. Times in seconds.
"""

import heapq
from hashlib import sha256
from itertools import pairwise
from math import exp, inf, log
from pathlib import Path
from random import Random
from typing import Annotated

import msgspec

from parity_models.documents import content_of, read_json
from parity_models.errors import FaultPlanError
from parity_models.roles import Source

SLICE = 0.001
"""Units of one worker that begin within the same slice of time draw the same times."""

Duration = Annotated[float, msgspec.Meta(ge=0, le=86400)]
Spell = Annotated[float, msgspec.Meta(ge=0.001, le=86400)]


class Constant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="constant"):
    """Always `seconds`."""

    seconds: Duration

    def draw(self, rng: Random) -> float:
        return self.seconds


class Uniform(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="uniform"):
    """Uniform between `low` and `high`."""

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
        return exp(rng.normalvariate(log(self.median), self.sigma))


Distribution = Constant | Uniform | Exponential | LogNormal


class Spells:
    """Alternating gaps and spells from time 0 on. Times of calls must not decrease."""

    def __init__(self, rng: Random, gap: Distribution, length: Distribution) -> None:
        self._rng = rng
        self._gap = gap
        self._length = length
        self._start = self._stop = 0.0

    def after(self, time: float) -> tuple[float, float]:
        """Return the start and the end of the first spell that ends after `time`."""
        while self._stop <= time:
            self._start = self._stop + self._gap.draw(self._rng)
            self._stop = self._start + self._length.draw(self._rng)
        return self._start, self._stop


_MASK = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15
"""The golden ratio, as an odd number, as in SplitMix64."""


class SlicedRandom(Random):
    """Random numbers by slice of time, the same in every process for a `seed`.

    A Mersenne Twister takes 20 µs to seed and 2.5 kB of state. SplitMix64 (Steele, Lea and Flood,
    Fast Splittable Pseudorandom Number Generators, OOPSLA 2014) has 8 bytes of state.
    """

    def __init__(self, seed: str) -> None:
        super().__init__(0)
        self._key = int.from_bytes(sha256(seed.encode()).digest()[:8], "little")
        self._state = 0
        self.begin(0)

    def begin(self, number: int) -> None:
        """Continue with the first number of this slice."""
        self._state = _mix(self._key + number * _STEP)
        self.gauss_next = None  # drop the last slice's

    def random(self) -> float:
        """Return a number of 0 or more and below 1, in steps of 2^-53."""
        self._state = value = (self._state + _STEP) & _MASK
        return (_mix(value) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


# Fault plans

Factor = Annotated[float, msgspec.Meta(ge=0.01, le=1000)]
Nodes = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Slowdowns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Spells in which units take a drawn `delay` longer and `factor` times as long.

    Spells and gaps are exponential; with `mean_between` 0, units are always slow. `workers` None:
    all, each at its own times; with `nodes`, those of a node (number modulo `nodes`) together.
    """

    mean_between: Duration
    mean_length: Spell
    delay: Distribution
    workers: tuple[int, ...] | None = None
    factor: Factor = 1.0
    nodes: Nodes = 0


class Pauses(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Spells of a drawn `length` without progress, as in a garbage collection.

    Gaps are exponential; `workers` and `nodes` are as for Slowdowns.
    """

    mean_between: Spell
    length: Distribution
    workers: tuple[int, ...] | None = None
    nodes: Nodes = 0


class Degradation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Workers that slow down until they are recycled, one of `sets` at a time.

    Sets are worker numbers modulo `sets`. In its turn of `turn` seconds, units of a set slow down
    from their usual time to `factor` times as long; then the set is as new.
    """

    sets: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    turn: Spell
    factor: Factor = 6.0

    def at(self, worker: int, time: float) -> float:
        """Return the factor of a worker's run times at a time."""
        turn, into = divmod(time, self.turn)
        if turn % self.sets != worker % self.sets:
            return 1.0
        return 1.0 + (self.factor - 1.0) * into / self.turn


class ColdStart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A slow start after a kill: `factor` times as long, falling to normal over `length`."""

    factor: Factor
    length: Spell


class Shuffles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Background transfers: `transfers` at all times, each between two workers drawn anew.

    A transfer lasts for a drawn `length`. Every unit of a worker takes a drawn `delay` longer for
    each transfer that it is an end of (Kosaian et al., SOSP 2019, section 5.1). Workers are drawn
    from 0 to `workers` - 1; not all of these need exist.
    """

    transfers: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    workers: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)]
    length: Distribution
    delay: Distribution


class Neighbours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another tenant's units on the accelerators of `workers`, first come, first served.

    Units arrive at each by a Poisson process of `rate` per second and take a drawn `service_time`.
    """

    rate: Annotated[float, msgspec.Meta(gt=0, le=10_000)]
    service_time: Distribution
    workers: tuple[int, ...]


class Kill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """kill -9 of worker number `worker`, `at` seconds after injection began."""

    worker: Annotated[int, msgspec.Meta(ge=0)]
    at: Duration


class Lie(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A planned spell in which one worker runs the ONNX model in `file` in place of its own.

    The worker looks for the file before each unit, so a spell can be controlled from outside:
    without the file it runs its own model. A worker that restarts within the spell continues to
    lie, like one with a broken accelerator.
    """

    worker: Annotated[int, msgspec.Meta(ge=0)]
    file: Annotated[str, msgspec.Meta(min_length=1)]
    start: Duration = 0.0
    length: Spell = 86400.0
    role: str = "deployed"


class FaultPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Service times, slowness and failures of workers; empty by default.

    `service_time` is the least time of a unit, as if the worker had an accelerator (it waits, and
    holds no core); `service_times` are those of single roles. `generations`: units of worker i take
    `generations[i]` times as long, repeating. `coverage` is the share of queries that stand-ins may
    answer; `coverages` are those of single stand-ins, by the source of their answers. `doubts` are
    equally likely probabilities, ascending, that a stand-in's output differs from the model's, in
    place of calibrated ones; `doubts_of` are those of single stand-ins. `poison`: a worker that
    runs an input whose first element is this number dies.
    """

    seed: int = 0
    service_time: Distribution | None = None
    service_times: dict[str, Distribution] = {}
    coverage: Share = 1.0
    coverages: dict[Source, Share] = {}
    doubts: tuple[Share, ...] = ()
    doubts_of: dict[Source, tuple[Share, ...]] = {}
    slowdowns: Slowdowns | None = None
    pauses: Pauses | None = None
    generations: tuple[Factor, ...] = ()
    degradation: Degradation | None = None
    cold_start: ColdStart | None = None
    shuffles: Shuffles | None = None
    neighbours: Neighbours | None = None
    kills: tuple[Kill, ...] = ()
    lies: tuple[Lie, ...] = ()
    poison: float | None = None

    def __post_init__(self) -> None:
        for doubts in (self.doubts, *self.doubts_of.values()):
            if any(one > next for one, next in pairwise(doubts)):
                raise ValueError("doubts must ascend")

    def check(self, workers: int) -> None:
        """Raise FaultPlanError if the plan names a worker that is not one of 0..workers-1."""
        named = {kill.worker for kill in self.kills} | {lie.worker for lie in self.lies}
        for part in (self.slowdowns, self.pauses, self.neighbours):
            named.update(part.workers or () if part else ())
        for worker in sorted(named):
            if not 0 <= worker < workers:
                raise FaultPlanError(
                    f"the fault plan names worker {worker}, but there are {workers}: "
                    f"they are numbered from 0 to {workers - 1}"
                )

    def kill_times(self, worker: int) -> list[float]:
        """Return the times at which the worker is killed, in order."""
        return sorted(kill.at for kill in self.kills if kill.worker == worker)

    def refuses(self, query: int, source: Source) -> bool:
        """Return whether the stand-in with this source must not answer a query, by its number.

        The same queries are hard for all: one that a stand-in refuses is refused by every stand-in
        with a smaller coverage.
        """
        coverage = self.coverages.get(source, self.coverage)
        return coverage < 1 and self._hardness(query) >= coverage

    @property
    def has_doubts(self) -> bool:
        """True if the plan sets the doubts of outputs."""
        return bool(self.doubts or self.doubts_of)

    def doubt(self, query: int, source: Source) -> float:
        """Return the probability that this stand-in's output for a query, by its number, differs
        from the model's; 0 if the plan does not say. Harder queries have larger doubts."""
        doubts = self.doubts_of.get(source, self.doubts)
        return doubts[int(self._hardness(query) * len(doubts))] if doubts else 0.0

    def _hardness(self, query: int) -> float:
        """Return how hard a query is for stand-ins: uniform, 0 or more and below 1."""
        return (_mix(_mix(self.seed) + (query + 1) * _STEP) >> 11) * 2.0**-53

    def rng(self, worker: int | str, purpose: str) -> Random:
        """Return randomness that is the same in every process for the same plan and arguments."""
        return Random(f"{self.seed}/{worker}/{purpose}")


def load_fault_plan(source: str | Path) -> FaultPlan:
    """Read the plan in a JSON file, or in `source` itself if that begins with a brace.

    Raises FaultPlanError if it cannot be read or is not a plan.
    """
    given = isinstance(source, str) and source.lstrip().startswith("{")
    name = "the fault plan" if given else str(source)
    try:
        content = str(source).encode() if given else content_of(Path(source))
        return read_json(content, FaultPlan)
    except OSError as error:
        raise FaultPlanError(f"cannot read the fault plan {name}: {error.strerror}") from error
    except ValueError as error:
        raise FaultPlanError(
            f"{name} is not a fault plan: {error}; see docs/reference/faults.md"
        ) from error


# The effect of a plan on the units of one worker; times are since injection began


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
                length *= rng.random()  # as if it had begun before, so that lanes are not in step
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
        self.poison = plan.poison
        """The first element of inputs that kill the worker, if any."""
        if plan.shuffles is not None and transfers is None:
            transfers = Transfers(plan.shuffles, plan.seed, worker)
        self._transfers = transfers
        self._held = 0.0
        self._paused_in: list[tuple[float, float]] = []
        slow, pauses, neighbours = plan.slowdowns, plan.pauses, plan.neighbours
        if slow is not None:
            self._slow = self._spells("slowdowns", slow, Exponential(slow.mean_length))
        if pauses is not None:
            self._paused = self._spells("pauses", pauses, pauses.length)
        if neighbours is not None and worker in neighbours.workers:
            self._neighbour = _Neighbour(neighbours, plan.rng(worker, "neighbour"))

    def _spells(self, name: str, part: Slowdowns | Pauses, length: Distribution) -> Spells | None:
        """Return this worker's spells, its own or those of its node; None if it has none."""
        if part.workers is not None and self._worker not in part.workers:
            return None
        course = f"node {self._worker % part.nodes}" if part.nodes else self._worker
        return Spells(self._plan.rng(course, name), Exponential(part.mean_between), length)

    def files(self, began: float, role: str) -> list[str]:
        """Return ONNX files; a unit of `role` runs the first that exists, else its own model."""
        return [
            lie.file
            for lie in self._plan.lies
            if (lie.worker, lie.role) == (self._worker, role)
            and lie.start <= began < lie.start + lie.length
        ]

    def release(self, began: float, done: float, role: str = "") -> float:
        """Return when a unit that began at `began` and was done at `done` may be reported.

        Must be called in order of time: no unit begins until the previous one is released.
        """
        if began < 0:
            return done
        rng, plan = self._unit, self._plan
        rng.begin(int(began // SLICE))
        slow = self._slow is not None and self._slow.after(began)[0] <= began
        emulated = plan.service_times.get(role, plan.service_time)
        service = 0.0 if emulated is None else emulated.draw(rng)
        factor = self._factor(began, slow)
        # An emulated service time includes the real run time.
        busy = max(done - began, service * factor) if service else (done - began) * factor
        delay = 0.0
        if plan.slowdowns is not None and slow:
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

        Its computation ends then. Delays, pauses and neighbours are not its work, so they still
        hold it.
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

    def _factor(self, began: float, slow: bool) -> float:
        """Return the factor of a unit's usual time, in a `slow` spell or not."""
        plan, factor = self._plan, 1.0
        if plan.generations:
            factor = plan.generations[self._worker % len(plan.generations)]
        if plan.degradation is not None:
            factor *= plan.degradation.at(self._worker, began)
        if plan.cold_start is not None:
            killed = max((at for at in self._kills if at <= began), default=-inf)
            warm = min(1.0, (began - killed) / plan.cold_start.length)
            factor *= 1.0 + (plan.cold_start.factor - 1.0) * (1.0 - warm)
        if plan.slowdowns is not None and slow:
            factor *= plan.slowdowns.factor
        return factor
