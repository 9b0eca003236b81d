"""The engine on Ray: units go to workers in replicas that the roster has leased to this frontend.

Ray starts, places, scales and restarts the replicas; this is only told which of them are its own.
An instance that it has to let go of leaves once its unit is done. One whose connection breaks, or
that is not heard of, is gone at once; it may come back as another instance.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import zmq
from numpy.typing import NDArray
from zmq.utils.monitor import recv_monitor_message

from parity_models.errors import ServingError
from parity_models.models.bundle import Bundle
from parity_models.options import options_of
from parity_models.serving.access import Access
from parity_models.serving.engine import Engine, EngineListener, Parts
from parity_models.serving.metrics import Metrics
from parity_models.serving.ray.cluster_options import ClusterOptions
from parity_models.serving.ray.roster import INTERVAL, FrontendReport, Replica
from parity_models.serving.worker.link import SocketChannel, WorkerLink, ZmqContext
from parity_models.serving.worker.socket_key import SocketKey
from parity_models.serving.worker.sockets import bind
from parity_models.serving.worker.wire import (
    Cancel,
    Exit,
    Heartbeat,
    Hello,
    Lease,
    Release,
    Report,
)
from parity_models.serving.worker.workers import WorkerEngine

if TYPE_CHECKING:
    from parity_models.serving.options import ServeOptions

START_PATIENCE = 10.0
"""Seconds for which an engine waits for all instances that it is started with."""

HURRY = 0.05
"""Seconds between two reports while the engine starts."""

PATIENCE = 2.0
"""Seconds the roster has for an answer."""

TOLERANCE = 1e-4
"""Of predictions; nodes may have processors of different kinds."""

LINGER = 200
"""Milliseconds that a worker's release has to reach it."""

_log = logging.getLogger(__name__)

T = TypeVar("T")

AskRoster = Callable[[FrontendReport], Awaitable[tuple[Replica, ...]]]


class LeasedWorker(WorkerLink):
    """A worker in a replica that this frontend has leased; `leaving` once it is to be released."""

    def __init__(
        self, instance: str, replica: Replica, context: ZmqContext, key: SocketKey
    ) -> None:
        units, control = SocketChannel(context), SocketChannel(context)
        super().__init__(instance, replica.roles, units, control)
        try:
            for channel, endpoint in ((units, replica.units), (control, replica.control)):
                key.reach(channel.socket)
                channel.socket.connect(endpoint)
        except BaseException:
            super().close()
            raise
        self.replica = replica
        self.leaving = False
        self._loop = asyncio.get_running_loop()
        self._monitored = units.socket
        self._monitor = units.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)

    def when_disconnected(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the connection to the worker breaks."""

        def look() -> None:
            with suppress(zmq.Again):
                recv_monitor_message(self._monitor, zmq.NOBLOCK)
                callback()

        self._loop.add_reader(self._monitor.fileno(), look)
        # A ZeroMQ socket's descriptor tells of what comes only once what came has been looked at.
        self._monitor.get(zmq.EVENTS)

    def close(self, linger: int = LINGER) -> None:
        self._loop.remove_reader(self._monitor.fileno())
        self._monitored.disable_monitor()
        self._monitor.close()
        super().close(linger)


class RayEngine(WorkerEngine[LeasedWorker]):
    """Replicas on a Ray cluster, which `roster` grants to the frontend called `name`.

    They have the models and the key of the deployment `bundle`, and report to `address`, an IP
    address of this machine, in frames of up to `max_frame` bytes. One that has a unit for
    `unit_timeout` seconds, or is recycled, is told to end, so that Ray starts another.
    """

    name = "ray"
    takes_several = False
    takes_faults = True
    serves_itself = True
    refuses: ClassVar[Mapping[str, str]] = dict.fromkeys(
        (
            "min_ready",
            "shutdown_delay",
            "ui",
            "access_log",
            *(option.name for option in options_of(Access)),
        ),
        "Ray Serve's own proxies are what clients and probes reach",
    )

    @dataclass(frozen=True, kw_only=True)
    class Options(ClusterOptions):
        """What can be set."""

    @classmethod
    def for_several(cls) -> type[Engine]:
        # Only now: whoever does not use Ray need not have it.
        from parity_models.serving.ray.cluster_engine import ClusterEngine

        return ClusterEngine

    @classmethod
    def served(
        cls, bundle: Bundle, options: "ServeOptions", *, traces: bool
    ) -> AbstractContextManager[str]:
        # Only now: whoever does not use Ray need not have it.
        from parity_models.serving.ray.cluster import served_on_ray

        return served_on_ray(bundle, options, options.engine.settings, traces=traces)

    @classmethod
    def build(cls, options: Any, parts: Parts) -> Engine:
        raise ServingError(
            "on Ray a bundle is an application with servers of its own; use `parm serve --engine "
            "ray`, or parity_models.serving.ray.app"
        )

    def __init__(
        self,
        roster: AskRoster,
        name: str,
        bundle: str,
        address: str,
        key: SocketKey,
        *,
        max_frame: int,
        heartbeat_timeout: float = 2.0,
        unit_timeout: float = 10.0,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(
            heartbeat_timeout=heartbeat_timeout,
            join_timeout=heartbeat_timeout,
            unit_timeout=unit_timeout,
            metrics=metrics,
        )
        self._roster = roster
        self._name = name
        self._bundle = bundle
        self._address = address
        self._key = key
        self._max_frame = max_frame
        self._lives = count()
        self._lost: set[str] = set()
        self._touch: asyncio.Task[None] | None = None
        self._stopped = False

    # Engine

    async def start(self, roles: Sequence[frozenset[str]], listener: EngineListener) -> None:
        """Returns when the roster has granted an instance for each of `roles`; after START_PATIENCE
        seconds, one for each that differs from the others will do. More may come later."""
        if not roles:
            raise ServingError("an engine needs at least one instance")
        self._open(listener)
        reports = self._open_reports(self._key)
        reports.set(zmq.MAXMSGSIZE, self._max_frame)
        try:
            self.endpoint = bind(reports, f"tcp://{self._address}:*")  # that workers report to
        except zmq.ZMQError as error:
            self._close()
            raise ServingError(f"cannot listen at {self._address}: {error.strerror}") from error
        self._wanted = Counter(roles)
        self._enough = asyncio.Event()
        self._listen()
        self._touch = asyncio.create_task(self._keep_in_touch())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(START_PATIENCE):
                    await self._enough.wait()
            self._wanted = Counter(set(roles))
            self._check_enough()
            await self._enough.wait()
        except BaseException:
            await self.stop()
            raise

    def run(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        worker = self._workers.get(instance)
        if worker is None or (worker.leaving and worker.running is None):
            return  # it has left, or does so as soon as this returns
        super().run(instance, unit, role, rows)

    @property
    def tolerance(self) -> float:
        return TOLERANCE

    async def stop(self) -> None:
        if self._stopped or self._touch is None:
            return
        self._stopped = True
        self._touch.cancel()
        self._deafen()
        for worker in self._workers.values():
            if worker.running is not None:
                worker.tell(Cancel(worker.instance, worker.running.unit))
            worker.tell(Release(worker.instance))
            worker.close()
        self._workers.clear()
        try:
            with suppress(Exception):
                async with asyncio.timeout(PATIENCE):
                    report = FrontendReport(self._name, self._bundle, leaving=True)
                    await self._roster(report)
        finally:
            self._close()

    def replicas(self) -> dict[str, Replica]:
        """The replica of each instance that has joined, by the instance's name."""
        return {
            worker.instance: worker.replica for worker in self._workers.values() if worker.joined
        }

    # The roster

    async def _keep_in_touch(self) -> None:
        reachable = True
        me = asyncio.current_task()
        while True:
            lost = tuple(self._lost)
            held = tuple(worker.replica for worker in self._workers.values())
            try:
                async with asyncio.timeout(PATIENCE):
                    replicas = await self._roster(
                        FrontendReport(self._name, self._bundle, held, lost)
                    )
            except (Exception, asyncio.CancelledError) as error:
                if me is not None and me.cancelling():
                    raise  # it is this that is to end, not only what the roster was asked
                if reachable:
                    _log.warning("no word from the roster: %r; instances stay as they are", error)
                reachable = False
            else:
                reachable = True
                self._lost.difference_update(lost)
                # Not called from here: a listener's mistake must not end this.
                self._loop.call_soon(self._follow, replicas)
            await asyncio.sleep(INTERVAL if self._enough.is_set() else HURRY)

    def _follow(self, replicas: Sequence[Replica]) -> None:
        if self._stopped:
            return
        granted = {replica.key: replica for replica in replicas if replica.key not in self._lost}
        for worker in list(self._workers.values()):
            if granted.pop(worker.replica.key, None) is None:
                worker.leaving = True
                self._try(self._part, worker)
        for replica in granted.values():
            self._try(self._lease, replica)

    def _try(self, step: Callable[[T], None], about: T) -> None:
        """An error of one replica must not stop the others from being leased or released."""
        try:
            step(about)
        except Exception as error:
            self._got_over("follow", error)

    def _lease(self, replica: Replica) -> None:
        instance = f"{replica.key}.{next(self._lives)}@{self._name}"
        try:
            worker = LeasedWorker(instance, replica, self._context, self._key)
        except Exception:
            self._lost.add(replica.key)
            raise
        worker.when_disconnected(lambda: self._lose(worker, "has broken its connection"))
        worker.tell_before_units(Lease(instance, self.endpoint))
        self._workers[instance] = worker

    # Workers

    def _hello(self, worker: LeasedWorker, hello: Hello) -> None:
        worker.join(hello)
        self._check_enough()
        self._listener.instance_joined(worker.instance, worker.roles, worker.replica.node)

    def _check_enough(self) -> None:
        if Counter(each.roles for each in self._workers.values() if each.joined) >= self._wanted:
            self._enough.set()

    def _reported(self, worker: LeasedWorker, report: Report) -> None:
        if isinstance(report, Heartbeat) and report.leaving:
            worker.leaving = True
        self._part(worker)

    def _part(self, worker: LeasedWorker) -> None:
        """Let go of it, if it is to leave and has no unit."""
        if worker.leaving and worker.running is None:
            worker.tell(Release(worker.instance))
            self._remove(worker, "was let go")

    def _give_up(self, worker: LeasedWorker, why: str) -> None:
        worker.tell(Exit(worker.instance))
        self._lose(worker, why)

    def _lose(self, worker: LeasedWorker, why: str) -> None:
        if self._workers.get(worker.instance) is worker:
            _log.warning("instance %s %s", worker.instance, why)
            self._lost.add(worker.replica.key)
            self._remove(worker, why)

    def _remove(self, worker: LeasedWorker, why: str) -> None:
        del self._workers[worker.instance]
        worker.close()
        if worker.joined:
            self._listener.instance_left(worker.instance, why)


def holder_of(instance: str) -> str:
    """The name of the frontend that leased a worker as this instance."""
    return instance.rpartition("@")[2]
