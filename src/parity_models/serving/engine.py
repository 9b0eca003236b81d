"""Engines run models for the frontend.

An engine keeps a number of instances up and runs units on them. It does not decide what runs where:
it does what the driver asks for, and reports what happened to its listener.

- Instances have ids that are never used twice: an instance that fails and is replaced is one that
  left and another that joined.
- An instance has one unit at a time; the next may come once it is reported finished or failed.
- Every unit is reported once, unless its instance leaves: then nothing more is reported of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

from parity_models import options
from parity_models.bundle.bundle import Bundle
from parity_models.bundle.onnx_model import PinnedModel
from parity_models.roles import BACKUP
from parity_models.scheduling.race import LIGHT
from parity_models.serving.metrics import Metrics
from parity_models.simulation.emulation import FaultPlan


class EngineListener(Protocol):
    """Receives events of instances and units, always on the thread of the event loop."""

    def instance_joined(
        self, instance: str, roles: frozenset[str], node: str | None = None
    ) -> None:
        """The instance is warm and idle, and runs these roles (deployed, parity-0, ...).

        `node` is the same for instances that are slow or gone together, as on one machine.
        """

    def instance_left(self, instance: str, why: str) -> None:
        """The instance is gone, and its unit with it; `why` is only for the log."""

    def unit_finished(
        self, unit: int, outputs: NDArray[Any], *, ended: float | None = None
    ) -> None:
        """The unit has outputs: (rows, *output shape), in the order of its rows.

        They must not be written to. `ended` is the time at which the instance finished the unit, in
        seconds of this machine's time.monotonic(). It is None if the engine does not know it, as
        for an instance on another machine.
        """

    def unit_failed(self, unit: int, detail: str, *, busy: float = 0.0) -> None:
        """The unit has no outputs, but its instance is well; `detail` is for people, clients
        included.

        `busy`: the instance refused the unit because it has enough work, and takes none for this
        many seconds. It counts neither against the instance nor against the unit.
        """

    def headers_of(self, unit: int) -> Mapping[str, str]:
        """Return the headers, or metadata, of a request that sends the unit to another server: the
        ids of the requests that it is for, and their trace."""


_GIVEN = "it has the instances that it is given"
FIXED: Mapping[str, str] = {"instances": _GIVEN, "extra_instances": _GIVEN}
"""Options that an engine refuses if its own options name its instances."""


@dataclass(frozen=True)
class Placement:
    """The place of a worker of the local engine; by default the machine of its engine.

    `prefix` comes before the worker's command line and must end in an exec of it, as `taskset`
    and `ip netns exec` do. `link` is the IP address at which the engine listens for its worker,
    which then uses TCP, unauthenticated: only for network namespaces of one machine. `node` names
    the machine, whose workers fail together; None: the worker has a machine to itself.
    """

    prefix: tuple[str, ...] = ()
    link: str | None = None
    node: str | None = None


@dataclass(frozen=True)
class Parts:
    """The parts of an engine: the bundle's models, by role, and a server's settings.

    A unit has up to `max_batch` rows, and its instance `unit_timeout` seconds for it. `placements`
    say where each instance is to run; none: all next to the server. `starts_at_once`: the most
    instances that start at a time, while others serve; None: all. `own` are the roles that run next
    to the engine, in the server's process.
    """

    bundle: Bundle
    models: Mapping[str, PinnedModel]
    metrics: Metrics
    max_batch: int
    unit_timeout: float
    placements: Sequence[Placement] = ()
    starts_at_once: int | None = None
    own: frozenset[str] = frozenset()


class Engine(ABC):
    """Instances of models to run units on. An engine is started once and stopped once.

    A subclass declares its `name`, its `Options`, and whether fault plans can be injected
    (`takes_faults`) and instances can be placed (`takes_placements`). Within `grace` seconds,
    others are in the place of instances that ended. It runs as many instances as it is asked for,
    unless it has `fixed_roles`; stand-ins of its `own_roles` run in threads next to the frontend
    (local/thread_engine.py). It `refuses` options of a server that have no effect with it, each
    with the reason.
    """

    name: ClassVar[str]
    takes_faults: ClassVar[bool] = False
    takes_placements: ClassVar[bool] = False
    grace: ClassVar[float] = 0.0
    refuses: ClassVar[Mapping[str, str]] = {}

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """No options."""

    @classmethod
    def fixed_roles(cls, options: Any, bundle: Bundle) -> Sequence[frozenset[str]] | None:
        """Return the roles of each instance, if these `Options` fix them; None: as asked for.

        Raises:
            UserError: The options do not fit the bundle.

        """
        return None

    @classmethod
    def own_roles(cls, options: Any, bundle: Bundle) -> frozenset[str]:
        """Return the stand-ins that run in the server's process with these `Options`: by default, a
        backup so light that it would wait longer for an instance than it runs."""
        times = bundle.manifest.inference_times
        if times is None or times.backup is None or times.backup > LIGHT * times.deployed:
            return frozenset()
        return frozenset({BACKUP})

    @abstractmethod
    def __init__(self, options: Any, parts: Parts) -> None:
        """Make an engine with these `Options`; it does nothing before its start."""

    @abstractmethod
    async def start(self, roles: Sequence[frozenset[str]], listener: EngineListener) -> None:
        """Start an instance for each of `roles`; return when all of them have joined.

        Raises:
            ServingError: An instance cannot be started; nothing is left running.
            UserError: The options do not fit the environment; nothing is left running.

        """

    @abstractmethod
    def run(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        """Run a batch on an instance; never blocks.

        A unit for an instance that is gone is ignored; its departure is, or will be, reported.

        Args:
            instance: The instance's id.
            unit: The id by which the unit is reported.
            role: The model to run.
            rows: n queries (*query_shape), all of one kind of the model's signature, and of its
                dtype. They are not copied, and must not change until the unit is reported. The
                outputs (n, *output_shape) are in their order.

        Raises:
            ValueError: The instance still has a unit.

        """

    @abstractmethod
    def cancel(self, instance: str, unit: int) -> None:
        """End a unit early if possible, as its outcome is no longer needed.

        It is still reported, as finished or as failed.
        """

    @abstractmethod
    def recycle(self, instance: str, why: str) -> None:
        """End the instance, and its unit with it, and start another in its place if possible.

        Its departure is reported, its unit is not. An instance that is gone is ignored.
        """

    @abstractmethod
    def running(self) -> Mapping[str, int | None]:
        """Return the unit of each instance that has joined and not left; None: it is idle."""

    @property
    @abstractmethod
    def tolerance(self) -> float:
        """The largest difference from an output of the same model in this process, as a share of
        the largest value: room for other hardware and precisions, not for other weights. A class
        attribute will do."""

    @abstractmethod
    async def stop(self) -> None:
        """Stop all instances and leave nothing behind; nothing more is reported."""

    def inject_faults(self, plan: FaultPlan) -> None:
        """Start the clock of a fault plan, in an engine that `takes_faults`."""
        raise NotImplementedError


FIRST, LONGEST, LONG_RUN = 0.1, 10.0, 1.0


class Backoff:
    """The seconds before something that ended is started again: they double from FIRST to LONGEST,
    and are FIRST again after a run of `long_run`."""

    def __init__(self, long_run: float = LONG_RUN) -> None:
        self._long_run = long_run
        self._next = FIRST

    def after(self, run: float) -> float:
        """Return the seconds to wait after a run of `run` seconds."""
        if run >= self._long_run:
            self._next = FIRST
        delay, self._next = self._next, min(2 * self._next, LONGEST)
        return delay
