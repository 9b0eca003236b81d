"""Engines that start instances, watch them, and replace those that end.

Timeouts are counted in ticks of the event loop, not by a clock. If the engine itself did not run
(it was stopped by Ctrl-Z, or a long computation held up the loop), its instances are not blamed for
reports that it did not read.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import inf
from typing import Any, ClassVar

from numpy.typing import NDArray

from parity_models.bundle.onnx_model import PinnedModel
from parity_models.errors import ServingError
from parity_models.serving.engine import Backoff, Engine, EngineListener, Parts
from parity_models.serving.worker import wire
from parity_models.simulation.emulation import FaultPlan
from parity_models.tensors.signature import Layout, Signature, pack

TICK = 0.1
"""Seconds between two checks of all instances' timeouts."""

LONG_SERVICE = 60.0
"""Seconds of service after which a recycled instance's back-off starts anew."""

OnReport = Callable[[wire.Report, wire.Frame], None]
"""Takes a report, and the bytes of a unit's outputs."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class RunningUnit:
    """A unit of `rows` rows that an instance has had for `age` of the engine's ticks."""

    unit: int
    output: Layout
    rows: int
    age: int = 0


class SupervisedInstance(ABC):
    """One life of an instance, which ends once and is followed by another.

    `number` counts the engine's instances from 0 and is the same in every life; `name` is not. It
    runs `models`, by role, as its engine prepared them. `joined` is true once it has said hello.
    `silence` is the number of the engine's ticks since its last report. `signatures` are those of
    its models, by role, once it has joined. `why_killed` is set once it has been killed; later
    reports are ignored. `recycled` is true if it was killed without a known fault of its process.
    Its reports go to its `engine`, with the bytes of a unit's outputs.
    """

    def __init__(
        self, engine: "SupervisedEngine", number: int, name: str, models: Mapping[str, Any]
    ) -> None:
        self.number = number
        self.name = name
        self.roles = frozenset(models)
        self.node: str | None = None
        self.joined = False
        self.recycled = False
        self.why_killed: str | None = None
        self.silence = 0
        self.running: RunningUnit | None = None
        self._models = models
        self._on_report: OnReport = partial(engine.on_report, name)
        self.signatures: Mapping[str, Signature] = {}

    @abstractmethod
    async def live(self) -> str:
        """Start it, wait for its end, and return the reason, for people.

        Raises OSError and the like if it cannot be started.
        """

    @abstractmethod
    def send_unit(self, unit: wire.Unit, rows: Sequence[wire.Frame]) -> None:
        """Send it a unit, without waiting."""

    @abstractmethod
    def send(self, message: wire.Cancel | wire.InjectFaults) -> None:
        """Send it a message, without waiting."""

    @abstractmethod
    def _end(self) -> None:
        """End it at once, if it has been started."""

    async def cleanup(self) -> None:
        """Release what it has, even if `live` failed; by default, end it."""
        self._end()

    def kill(self, why: str) -> None:
        """End it at once, or as soon as it has started. The first `why` is reported."""
        self.why_killed = self.why_killed or why
        self._end()


def assign(
    models: Mapping[str, PinnedModel], keep: Callable[[PinnedModel], Any]
) -> Mapping[str, wire.AssignedModel]:
    """Return the models, by role, for instances that load them. `keep` is called once for each
    content, and returns where it is kept."""
    kept: dict[str, Any] = {}
    assigned = {}
    for role, model in models.items():
        sha256 = model.sha256
        if sha256 not in kept:
            kept[sha256] = keep(model)
        name = f"{role} ({model.path})"
        assigned[role] = wire.AssignedModel(kept[sha256], sha256, name, model.signature)
    return assigned


class SupervisedEngine(Engine):
    """Instances of a bundle's models that are started, watched, and replaced when they end.

    An instance is killed if it has been silent for `heartbeat_timeout` seconds (`join_timeout`
    before its hello), or has had a unit for the parts' `unit_timeout`. One that ended is started
    again, after a back-off. Instance i runs the i-th of the roles that the engine is started with;
    it is called "i", and "i.n" after n restarts. A subclass sets the class of its instances, the
    timeouts, and whether all instances have this machine's clock (`same_clock`).
    """

    instance_kind: type[SupervisedInstance]

    takes_faults = True
    prefix = ""
    """Comes before the names of instances."""
    same_clock: ClassVar[bool] = False
    heartbeat_timeout = inf
    join_timeout = inf

    def __init__(self, options: Any, parts: Parts) -> None:
        self.options = options
        self.parts = parts
        self._models: Mapping[str, Any] = {}
        self._resources = AsyncExitStack()
        """Resources that instances start from; closed when the engine has stopped."""
        self._instances: dict[str, SupervisedInstance] = {}
        self._to_join: set[int] = set()
        self._supervisors: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._faults: tuple[FaultPlan, float] | None = None
        self._kills: list[asyncio.Task[None]] = []

    @abstractmethod
    def _prepare(self, models: Mapping[str, PinnedModel], instances: int) -> Mapping[str, Any]:
        """Return the models, by role, in the form that this many instances take.

        It runs in a thread of its own. Raises ServingError or UserError.
        """

    # Engine

    async def start(self, roles: Sequence[frozenset[str]], listener: EngineListener) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._slots = asyncio.Semaphore(self.parts.starts_at_once or len(roles))
        try:
            used = sorted(frozenset[str]().union(*roles))
            models = {role: self.parts.models[role] for role in used}
            preparing = asyncio.ensure_future(asyncio.to_thread(self._prepare, models, len(roles)))
            try:
                self._models = await asyncio.shield(preparing)
            finally:
                await asyncio.wait((preparing,))  # it may have resources, even if cancelled
            self._to_join = set(range(len(roles)))
            self._supervisors = {
                asyncio.create_task(self._supervise(number, each))
                for number, each in enumerate(roles)
            }
            self._tick()
            await self._started
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self._timer is not None:
            self._timer.cancel()
        for kill in self._kills:
            kill.cancel()
        # They have no state, and the outcomes of their units are no longer needed.
        for instance in self._instances.values():
            instance.kill("was stopped")
        try:
            if self._supervisors:
                await asyncio.wait(self._supervisors)
        finally:
            self._models = {}
            await self._resources.aclose()

    def run(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        its = self._instances.get(instance)
        if its is None:
            return
        if its.running is not None:
            raise ValueError(f"instance {instance} still has unit {its.running.unit}")
        try:
            if role not in its.signatures:
                raise ValueError(f"instance {instance} does not run {role}")
            signature = its.signatures[role]
            kind = signature.plain or signature.kind_of(rows[0])
        except ValueError as error:
            self._loop.call_soon(self._listener.unit_failed, unit, f"{role}: {error}")
            return
        its.running = RunningUnit(unit, kind.output, len(rows))
        its.send_unit(wire.Unit(unit, role, len(rows), kind.sizes), list(map(pack, rows)))

    def cancel(self, instance: str, unit: int) -> None:
        its = self._instances.get(instance)
        if its is not None and its.running is not None and its.running.unit == unit:
            its.send(wire.Cancel(unit))

    def recycle(self, instance: str, why: str) -> None:
        its = self._instances.get(instance)
        if its is not None and its.joined:
            its.recycled = True
            its.kill(why)

    def running(self) -> Mapping[str, int | None]:
        return {
            name: None if instance.running is None else instance.running.unit
            for name, instance in self._instances.items()
            if instance.joined
        }

    def inject_faults(self, plan: FaultPlan) -> None:
        """Start the clock of a fault plan, which replaces any other.

        Raises FaultPlanError if the plan names an instance that the engine does not have.
        """
        plan.check(len(self._supervisors))
        start = time.monotonic()
        self._faults = (plan, start)
        for instance in self._instances.values():
            if instance.joined:
                instance.send(wire.InjectFaults(plan, instance.number, start))
        for kill in self._kills:
            kill.cancel()
        self._kills = [
            asyncio.create_task(self._kill_by_plan(number, plan, start))
            for number in range(len(self._supervisors))
        ]

    async def _kill_by_plan(self, number: int, plan: FaultPlan, start: float) -> None:
        for at in plan.kill_times(number):
            await asyncio.sleep(start + at - time.monotonic())
            for instance in self._instances.values():
                if instance.number == number:
                    instance.kill("was killed by the fault plan")

    # Reports

    def on_report(self, name: str, report: wire.Report, outputs: wire.Frame) -> None:
        """Take a report of the instance of this name, and the bytes of a unit's outputs."""
        instance = self._instances.get(name)
        if instance is None or instance.why_killed is not None or self._stopping.is_set():
            return  # the report was in flight
        instance.silence = 0
        running = instance.running
        try:
            match report:
                case wire.Finished(unit, ended) if running is not None and running.unit == unit:
                    instance.running = None
                    try:
                        rows = running.output.unpack(outputs, running.rows)
                    except ValueError as error:
                        self._listener.unit_failed(unit, f"its outputs cannot be read: {error}")
                        return
                    at = ended if self.same_clock else None
                    self._listener.unit_finished(unit, rows, ended=at)
                case wire.Failed(unit, detail) if running is not None and running.unit == unit:
                    instance.running = None
                    self._listener.unit_failed(unit, detail)
                case wire.Hello() if not instance.joined:
                    self._join(instance, report)
        except Exception as error:  # such as a bug of the listener
            _log.exception("a report of instance %s could not be handled", name)
            if not instance.joined:
                instance.kill(f"could not join: {error}")

    def _join(self, instance: SupervisedInstance, hello: wire.Hello) -> None:
        instance.signatures, instance.joined = hello.models, True
        if self._faults is not None:
            plan, start = self._faults
            instance.send(wire.InjectFaults(plan, instance.number, start))
        if instance.number in self._to_join:
            self._to_join.remove(instance.number)
            self._slots.release()
            if not self._to_join and not self._started.done():
                self._started.set_result(None)
        self._listener.instance_joined(instance.name, instance.roles, instance.node)

    # Supervision

    async def _supervise(self, number: int, roles: frozenset[str]) -> None:
        """Start an instance again whenever it ends, until the engine stops."""
        broken, recycled = Backoff(), Backoff(LONG_SERVICE)
        await self._slots.acquire()
        if self._stopping.is_set():
            self._slots.release()
            return
        for life in count():
            name = f"{self.prefix}{number}.{life}" if life else f"{self.prefix}{number}"
            began = self._loop.time()
            models = {role: self._models[role] for role in sorted(roles)}
            instance = self.instance_kind(self, number, name, models)
            self._instances[name] = instance
            try:
                why = await instance.live()
            except Exception as error:  # a later start may succeed
                why = f"could not be run: {error!r}"
            del self._instances[name]
            await instance.cleanup()
            if number in self._to_join:
                self._slots.release()
                if not self._started.done():
                    failure = ServingError(f"worker {number} could not start: it {why}")
                    self._started.set_exception(failure)
                return
            if self._stopping.is_set():
                return
            if instance.joined:
                # Not called from here: a bug of the listener must not end the supervision.
                self._loop.call_soon(self._listener.instance_left, name, why)
            backoff = recycled if instance.recycled else broken
            pause = backoff.after(self._loop.time() - began if instance.joined else 0.0)
            _log.warning("worker %s %s; it is restarted in %.1f s", name, why, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            if self._stopping.is_set():
                return

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK, self._tick)
        for instance in list(self._instances.values()):
            self._check_timeouts(instance)

    def _check_timeouts(self, instance: SupervisedInstance) -> None:
        """Kill the instance if it has been silent, or has had its unit, for too long."""
        limit = self.heartbeat_timeout if instance.joined else self.join_timeout
        silence = instance.silence * TICK
        instance.silence += 1
        if silence >= limit:
            instance.kill(f"was not heard from for {limit:g} s")
            return
        running, patience = instance.running, self.parts.unit_timeout
        if running is not None:
            age = running.age * TICK
            running.age += 1
            if age >= patience:
                instance.kill(f"had unit {running.unit} for more than {patience:g} s")
