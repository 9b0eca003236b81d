"""Fault plans: small JSON documents from which all slowness and failures follow.

What a plan does to a worker depends on the plan, the worker's number and the time since injection
began, and not on the load or on what the worker did before. So all runs that are compared meet the
same faults, and a restarted worker continues where its predecessor would be. Times in seconds.
"""

import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Annotated, Literal

import msgspec

from parity_models.documents import content_of, read_json
from parity_models.emulation.distributions import Distribution, Duration, Spell
from parity_models.errors import FaultPlanError

Factor = Annotated[float, msgspec.Meta(ge=0.01, le=1000)]
Nodes = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
StandInName = Literal["reconstruction", "backup", "backup-2", "backup-3", "backup-4"]


class Slowdowns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Spells in which units take a drawn `delay` longer and `factor` times as long.

    Spells and gaps are exponential; `mean_between` 0 is always slow. `workers` None: all of them,
    each at its own times or, with `nodes`, all of one node (number modulo `nodes`) together.
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
    from 0 to `workers` - 1, of which not all need exist.
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


class RandomKills(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """kill -9 at exponential times. `workers` None: all of them, each at its own times."""

    mean_between: Spell
    workers: tuple[int, ...] | None = None


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
    holds no core); `service_times` are those of single roles. With `computing` that time is
    computed instead, as by a model without an accelerator. `generations`: units of worker i take
    `generations[i]` times as long, repeating. `coverage` is the share of queries that stand-ins may
    answer; `coverages` are those of single stand-ins, by the source of their answers. `poison`: a
    worker that runs an input whose first element is this number dies.
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
        """Yield the times at which the worker is killed, in order; possibly without end."""
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
        """Return whether the stand-in with this source must not answer a query, by its number.

        The same queries are hard for all: what a stand-in with a larger coverage must not answer,
        no other may.
        """
        given = (share for name, share in self.coverages.items() if name == source)
        coverage = next(given, self.coverage)
        if coverage == 1:
            return False
        return Random(f"{self.seed}/gate {query}").random() >= coverage

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


def among(worker: int, workers: Sequence[int] | None) -> bool:
    """Return whether the worker is one of these; None: all are."""
    return workers is None or worker in workers


def course_of(kind: Slowdowns | Pauses, worker: int) -> str:
    """Return the name of a worker's course of spells: its own, or that of its node."""
    return f"node {worker % kind.nodes}" if kind.nodes else str(worker)
