"""One side of the live demo: a server in this process, whose instances can be harmed."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from parity_models.faults import Constant, FaultPlan, Lie, LogNormal, Slowdowns, Uniform
from parity_models.models.bundle import Bundle
from parity_models.scheduling import BACKUP
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.asked import Answers
from parity_models.serving.errors import RequestError
from parity_models.serving.local.local_engine import LocalEngine
from parity_models.serving.page.feed import Feed
from parity_models.serving.server import ServeOptions, Server

STOPPED = 1.0
"""Seconds for which an instance is stopped: less than it may be silent."""

SLOWER = 5.0
"""Times as long as usual that units of a slow instance take."""

SLOWDOWNS = Slowdowns(mean_between=10.0, mean_length=0.3, delay=Uniform(0.1, 0.3))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What both sides have alike. Times in seconds.

    `instances` and `further` ones run units that take about `service` each, those of the backup
    `service / speedup`, as if each had an accelerator. Every instance has `slowdowns`.
    """

    instances: int = 4
    further: int = 2
    service: float = 0.05
    speedup: float = 4.0
    slowdowns: Slowdowns = SLOWDOWNS
    deadline: float = 2.0
    seed: int = 0

    @property
    def workers(self) -> int:
        """How many instances a side has."""
        return self.instances + self.further

    @property
    def capacity(self) -> float:
        """Queries a second that all instances can answer at most."""
        return self.workers / self.service

    def plan(self, slow: frozenset[int], lying: frozenset[int], lie: str) -> FaultPlan:
        """The faults, with these workers slow, and these running the model in the file `lie`."""
        return FaultPlan(
            seed=self.seed,
            service_time=LogNormal(self.service, 0.1),
            service_times={BACKUP: Constant(self.service / self.speedup)},
            slowdowns=self.slowdowns,
            generations=tuple(SLOWER if n in slow else 1.0 for n in range(self.workers)),
            lies=tuple(Lie(worker, lie) for worker in sorted(lying)),
        )


class Stage:
    """Serves `bundle` with a policy, as the `scene` says. `lie` makes the file of a model that
    answers wrongly."""

    def __init__(self, bundle: Bundle, scene: Scene, policy: str, lie: Callable[[], str]) -> None:
        self._bundle = bundle
        self._scene = scene
        self._lie = lie
        self._server: Server | None = None
        self._slow: frozenset[int] = frozenset()
        self._lying: frozenset[int] = frozenset()
        self._changing = asyncio.Lock()
        self._stopped: set[asyncio.Task[None]] = set()
        self.policy = policy

    @property
    def feed(self) -> Feed | None:
        """What is shown of it, while it serves."""
        return None if self._server is None else self._server.feed

    async def start(self) -> None:
        """Serve. Raises UserError for a policy that does not fit the bundle."""
        async with self._changing:
            await self._begin(self._made(self.policy))

    async def switch(self, policy: str) -> None:
        """Serve with another policy. Raises UserError if the bundle has not what it takes."""
        async with self._changing:
            server = self._made(policy)
            await self._end()
            self.policy = policy
            await self._begin(server)

    async def stop(self) -> None:
        """Serve no more."""
        async with self._changing:
            await self._end()

    def ask(self, rows: NDArray[Any]) -> None:
        """Ask queries; what becomes of them is for the page to show."""
        if self._server is not None:
            with suppress(RequestError):
                self._server.frontend.ask(rows).future.add_done_callback(_seen)

    def kill(self, worker: int) -> None:
        """kill -9 this worker's process."""
        self._signal(worker, signal.SIGKILL)

    def pause(self, worker: int) -> None:
        """Stop this worker's process for a moment."""
        task = asyncio.get_running_loop().create_task(self._pause(worker))
        self._stopped.add(task)
        task.add_done_callback(self._stopped.discard)

    def slow(self, worker: int) -> None:
        """Make this worker slow, or as usual again."""
        self._slow ^= {worker}
        self._inject()

    def corrupt(self, worker: int) -> None:
        """Make this worker answer wrongly, or rightly again."""
        self._lying ^= {worker}
        self._inject()

    # Inside

    def _made(self, policy: str) -> Server:
        scene = self._scene
        options = ServeOptions(
            policy=PolicyChoice(policy),
            instances=scene.instances,
            parity_instances=scene.further,
            deadline=scene.deadline,
            faults=self._plan(),
            port=0,
            ui=True,
        )
        return Server(self._bundle, options)

    async def _begin(self, server: Server) -> None:
        await server.start()
        self._server = server
        self._inject()

    async def _end(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop()

    def _plan(self) -> FaultPlan:
        lie = self._lie() if self._lying else ""
        return self._scene.plan(self._slow, self._lying, lie)

    def _inject(self) -> None:
        if self._server is not None:
            self._engine(self._server).inject_faults(self._plan())

    def _signal(self, worker: int, number: signal.Signals) -> None:
        if self._server is None:
            return
        for instance, pid in self._engine(self._server).pids().items():
            if instance.partition(".")[0] == str(worker):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    async def _pause(self, worker: int) -> None:
        self._signal(worker, signal.SIGSTOP)
        try:
            await asyncio.sleep(STOPPED)
        finally:
            self._signal(worker, signal.SIGCONT)

    def _engine(self, server: Server) -> LocalEngine:
        engine = server.engine
        assert isinstance(engine, LocalEngine)
        return engine


def _seen(future: asyncio.Future[Answers]) -> None:
    """Errors are counted by the server; asyncio would else complain that nobody looked at them."""
    if not future.cancelled():
        future.exception()
