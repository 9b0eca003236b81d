"""A fault plan: what goes wrong, when, and for whom."""

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Literal

import msgspec

from parity_models.documents import content_of, read_json
from parity_models.errors import FaultPlanError
from parity_models.faults.distributions import Distribution, Duration, Spell
from parity_models.faults.neighbours import Neighbours
from parity_models.faults.pace import ColdStart, Degradation, Factor, Pace
from parity_models.faults.shuffles import Shuffles
from parity_models.faults.slowness import Pauses, Slowdowns

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
StandInName = Literal["reconstruction", "backup", "backup-2", "backup-3", "backup-4"]


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
    role: str = "deployed"


class FaultPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What goes wrong, when, and for whom; empty by default.

    `service_time`: a unit takes at least this long, as if the worker had an accelerator that is
    busy meanwhile (it waits, and holds no core); `service_times` says otherwise for some roles.
    `generations`: units of worker i take `generations[i]` times as long, over and over from the
    first one; `degradation` and `cold_start` are for some of them at some times.
    `computing`: that time is spent computing instead, as a model does that has no accelerator.
    `coverage`: stand-ins may answer this share of queries; what they say to the others is refused.
    `coverages` says otherwise for some of them, by the source of their answers.
    `poison`: a worker that runs an input whose first element is this value dies of it.
    """

    seed: int = 0
    service_time: Distribution | None = None
    service_times: dict[str, Distribution] = {}
    computing: bool = False
    coverage: Share = 1.0
    coverages: dict[StandInName, Share] = {}
    slowdowns: Slowdowns | None = None
    pauses: Pauses | None = None
    generations: tuple[Factor, ...] = ()
    degradation: Degradation | None = None
    cold_start: ColdStart | None = None
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
        if self.random_kills is None or not among(worker, self.random_kills.workers):
            return
        rng = self.rng(worker, "kills")
        at = 0.0
        while True:
            at += self.random_kills.mean_between * rng.expovariate(1.0)
            yield at

    def refuses(self, query: int, source: str) -> bool:
        """May the stand-in with this source not answer the query of this number, 0 or more?

        What one with a larger coverage may not answer, no other may: the same queries are hard.
        """
        told = (share for name, share in self.coverages.items() if name == source)
        coverage = next(told, self.coverage)
        if coverage == 1:
            return False
        return Random(f"{self.seed}/gate {query}").random() >= coverage

    def pace(self, worker: int) -> Pace | None:
        """How many times as long the worker's units take; None: never other than usual."""
        if not (self.generations or self.degradation or self.cold_start):
            return None
        factor = self.generations[worker % len(self.generations)] if self.generations else 1.0
        kills = self.kill_times(worker)
        return Pace(worker, factor, self.degradation, self.cold_start, kills)

    def rng(self, worker: int | str, purpose: str) -> Random:
        """Randomness that is the same in every process for the same plan and arguments."""
        return Random(self.seed_of(worker, purpose))

    def seed_of(self, worker: int | str, purpose: str) -> str:
        """What `rng` begins with."""
        return f"{self.seed}/{worker}/{purpose}"


def load_fault_plan(source: str | Path) -> FaultPlan:
    """The plan in a JSON file, or in `source` itself if that begins with a brace.

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


def among(worker: int, workers: Sequence[int] | None) -> bool:
    """Is the worker one of these? None: all are."""
    return workers is None or worker in workers
