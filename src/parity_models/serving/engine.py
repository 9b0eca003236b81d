"""What runs models for the frontend: an engine, and who listens to it.

An engine keeps a number of instances up and runs units on them. What to run where is not its
business: it does as it is told and reports what happened.

- Instances are told apart by ids that are never used twice: an instance that fails and is
  replaced is one that left and another that joined.
- An instance has one unit at a time; the next may come once it is reported finished or failed.
- Every unit is reported once, unless its instance leaves: then nothing more is heard of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from numpy.typing import NDArray

from parity_models import options
from parity_models.errors import ServingError, UserError
from parity_models.faults import FaultPlan
from parity_models.models.bundle import Bundle
from parity_models.models.pinned_model import PinnedModel
from parity_models.serving.local.placement import Placement
from parity_models.serving.metrics import Metrics

if TYPE_CHECKING:
    from parity_models.serving.options import ServeOptions


class EngineListener(Protocol):
    """Is told what happens to instances and units, always on the thread of the event loop."""

    def instance_joined(
        self, instance: str, roles: frozenset[str], node: str | None = None
    ) -> None:
        """The instance is warm and idle, and runs these roles (deployed, parity-0, ...).

        `node` is the same for instances that are slow or gone together, as on one machine.
        """

    def instance_left(self, instance: str, why: str) -> None:
        """The instance is gone, and the unit it had with it; `why` is for the log alone."""

    def unit_finished(
        self,
        unit: int,
        outputs: NDArray[Any],
        *,
        started: float | None = None,
        ended: float | None = None,
    ) -> None:
        """The unit's outputs are here: (rows, *output shape), in the order of its rows.

        They are not to be written to. `started` and `ended` are when the instance took up the unit
        and when it was done with it, in seconds of this machine's time.monotonic(); None where the
        engine does not know, as for an instance on another machine.
        """

    def unit_failed(self, unit: int, detail: str, *, busy: float = 0.0) -> None:
        """The unit has no outputs, its instance is fine; `detail` is for people, clients included.

        `busy`: the instance has turned it away, as it has enough to do, and takes none for so many
        seconds. That says nothing against either of them.
        """

    def headers_of(self, unit: int) -> Mapping[str, str]:
        """What a request that has another server run the unit should say beside it, as headers or
        metadata: whose requests it is for, and what trace it is part of."""


FIXED = dict.fromkeys(("instances", "parity_instances"), "it has the instances that it is given")
"""What an engine refuses whose instances are given with its options."""


@dataclass(frozen=True)
class Parts:
    """What an engine is built from: the bundle's models, by role, and what a server asks of it.

    A unit has up to `max_batch` rows, and its instance `unit_timeout` seconds for it. `placements`
    say where each instance is to run; none: all beside the server. Only with `allows_faults` can
    faults be injected. `starts_at_once`: instances that start at a time, where their start takes
    cores from what is served meanwhile; None: all.
    """

    bundle: Bundle
    models: Mapping[str, PinnedModel]
    metrics: Metrics
    max_batch: int
    unit_timeout: float
    placements: Sequence[Placement] = ()
    allows_faults: bool = False
    starts_at_once: int | None = None


class Engine(ABC):
    """Instances of models to run units on. An engine is started once and stopped once.

    A subclass says its `name`, its `Options`, and what it can do: `takes_faults`, have a fault plan
    injected; `takes_placements`, run each instance where it is told to; `takes_several`, be there
    several times in one process, each time for another bundle; `grows`, have more instances or
    fewer while it runs. It runs as many instances as it is asked for, unless it has `fixed_roles`.
    One that `serves_itself` is in no server of this process: it has servers of its own (`served`).
    Options of a server that say nothing with it are those that it `refuses`, each with the reason.
    """

    name: ClassVar[str]
    takes_faults: ClassVar[bool] = False
    takes_placements: ClassVar[bool] = False
    takes_several: ClassVar[bool] = True
    grows: ClassVar[bool] = False
    serves_itself: ClassVar[bool] = False
    refuses: ClassVar[Mapping[str, str]] = {}

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """None."""

    @classmethod
    def fixed_roles(cls, options: Any, bundle: Bundle) -> Sequence[frozenset[str]] | None:
        """What each instance runs, where that is given with these `Options`; None: as asked for.

        Raises UserError for options that do not fit the bundle.
        """
        return None

    @classmethod
    def check_several(cls, options: Any) -> None:
        """Raises UserError if it serves one bundle alone, or these `Options` are for one."""
        if not cls.takes_several:
            raise UserError(
                f"a repository is not for the engine {cls.name}, which serves one bundle; start a "
                "server for each model, or use the engine local"
            )

    @classmethod
    def for_several(cls) -> "type[Engine]":
        """The engine that versions of a repository have; this one, unless it serves itself."""
        return cls

    @classmethod
    def around(cls, options: Any) -> AbstractContextManager[None]:
        """What a server of a repository runs in, with these `Options`: by default nothing more."""
        return nullcontext()

    @classmethod
    def served(
        cls, bundle: Bundle, options: "ServeOptions", *, traces: bool
    ) -> AbstractContextManager[str]:
        """Serve the bundle for as long as the context lasts, and give the URL, where the engine
        `serves_itself`; with `traces`, send spans. Raises UserError for options that do not fit."""
        raise ServingError(f"the engine {cls.name} does not serve by itself")

    @classmethod
    def options_of_model(
        cls,
        given: Mapping[str, options.Value],
        own: Mapping[str, options.Value],
        bundle: Bundle,
        model: str,
        version: str,
    ) -> Mapping[str, options.Value]:
        """The options for a version of a repository's model: those `given` for all models, and its
        `own`. Raises UserError for those that cannot be."""
        return {**given, **own}

    @classmethod
    def build(cls, options: Any, parts: Parts) -> "Engine":
        """An engine with these `Options`; by default what the class makes of the two."""
        make: Any = cls
        engine: Engine = make(options, parts)
        return engine

    @abstractmethod
    async def start(self, roles: Sequence[frozenset[str]], listener: EngineListener) -> None:
        """Start an instance for each of `roles`; returns when all of them have joined.

        Raises ServingError, with nothing left running, if one cannot be had.
        """

    @abstractmethod
    def run(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        """Run `role` over `rows`, as one batch; never blocks.

        Each of the rows is one query (*query_shape), all of one kind of the model's signature, and
        of its dtype. They are reported as outputs (n, *output_shape), in their order. Raises
        ValueError if the instance still has a unit.

        The rows are not copied: they must stay as they are until the unit is reported. A unit for
        an instance that is gone is ignored, as its listener knows or is about to hear.
        """

    @abstractmethod
    def cancel(self, instance: str, unit: int) -> None:
        """Nobody needs the unit any more: end it early if that can be done.

        It is reported all the same, as finished or as failed.
        """

    @abstractmethod
    def recycle(self, instance: str, why: str) -> None:
        """End the instance, and its unit with it, and have another in its place if that can be.

        It leaves, which is reported; nothing is reported of its unit. One that is gone is ignored.
        """

    @abstractmethod
    def running(self) -> Mapping[str, int | None]:
        """The unit of each instance that has joined and not left; None: it is idle."""

    def crowded(self, instances: Collection[str]) -> bool:
        """Do these instances, which have a unit, use up what all instances share, as the cores of
        one machine? By default each has its own."""
        return False

    @property
    @abstractmethod
    def tolerance(self) -> float:
        """How far an output may be from that of the same model in this process, as a share of the
        largest value: room for other hardware and precisions, not for other weights."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop all instances and leave nothing behind; the listener hears nothing more."""

    @property
    def places(self) -> int:
        """How many instances it keeps up, or tries to. Raises ServingError if it does not grow."""
        raise ServingError(f"the engine {self.name} does not grow")

    @property
    def ending(self) -> int:
        """How many it kept up once whose processes have not ended yet.

        Raises ServingError if it does not grow.
        """
        raise ServingError(f"the engine {self.name} does not grow")

    def add(self, roles: frozenset[str]) -> None:
        """Keep one more instance up, which joins when it is warm.

        Raises ServingError if it does not grow.
        """
        raise ServingError(f"the engine {self.name} does not grow")

    def dismiss(self, instance: str) -> None:
        """Keep one instance less up: end this one, which has no unit. It leaves, which is reported;
        one that is gone is ignored. Raises ServingError if it does not grow."""
        raise ServingError(f"the engine {self.name} does not grow")

    def give_up_place(self) -> bool:
        """Keep one instance less up, of those that are not up now; False: all of them are.

        Raises ServingError if it does not grow.
        """
        raise ServingError(f"the engine {self.name} does not grow")

    def inject_faults(self, plan: FaultPlan) -> None:
        """Let the time of a fault plan begin now. Raises ServingError if it takes none."""
        raise ServingError(f"the engine {self.name} takes no faults")
