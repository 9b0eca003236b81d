"""The events of a chaos run: their course, drawn from the seed, and how they are brought about."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from parity_models.errors import UserError
from parity_models_lab.chaos.clients import RudeClients
from parity_models_lab.chaos.server import DESCRIPTORS, INSTANCES, TestedServer
from parity_models_lab.chaos.traffic import Traffic
from parity_models_lab.processes import send

EVENTS = {
    "calm": "nothing happens",
    "kill": "kill -9 of instances, one after the other",
    "stop": "SIGSTOP of an instance, SIGCONT at the end",
    "slow": "an instance gets little of its time",
    "liar": "an instance runs another model's weights",
    "flip": "an instance runs weights of which one exponent bit is flipped",
    "replace": "the bundle's folder holds another bundle, and an instance is killed",
    "delete": "the bundle's folder is gone, and an instance is killed",
    "descriptors": "no descriptors are left: idle connections hold them, and an instance is killed",
    "slowloris": "clients send headers and bodies byte by byte",
    "halves": "clients send half a body and go",
    "unread": "clients leave their answers unread",
    "disconnects": "clients hang up while they wait",
    "absurd": "inputs of 5, 100, -1e6, 1e30, 3e38, NaN, infinity",
    "nonsense": "wrong shapes, garbage instead of JSON and of HTTP",
    "timeouts": "timeouts near the service time",
    "overload": "three times the queries that the instances can answer",
    "poison": "queries that kill whoever runs them",
}
"""Events, and what they are."""

ALIKE = frozenset({"replace", "delete"})
"""Events that are not brought about at once: both take the bundle's folder."""

TOGETHER = 0.25
"""Share of phases that have two events at once."""
PHASE = (4.0, 8.0)
"""Seconds that events last."""
REST = 1.0
"""Seconds from an event's end to the next one, at the least: recovery, and an idle spell."""


@dataclass(frozen=True)
class Phase:
    """Events that begin together, and last for `seconds`."""

    events: tuple[str, ...]
    seconds: float

    @property
    def name(self) -> str:
        return self.events[0] if len(self.events) == 1 else "two at once"


def draw_course(
    seed: int, seconds: float, events: Sequence[str] = (), length: tuple[float, float] = PHASE
) -> list[Phase]:
    """Phases for so many seconds at least, every event before one comes again, pairs besides.

    Raises UserError for events that there are not.
    """
    unknown = sorted(set(events) - EVENTS.keys())
    if unknown:
        raise UserError(f"there is no event {unknown[0]!r}; there are {', '.join(EVENTS)}")
    known = list(events or EVENTS)
    rng = Random(f"{seed}/course")
    phases: list[Phase] = []
    left: list[str] = []
    spent = 0.0
    while spent < seconds:
        if not left:
            left = rng.sample(known, len(known))
        together = [left.pop()]
        ruled_out = {"calm", *together, *(ALIKE if together[0] in ALIKE else ())}
        others = [event for event in known if event not in ruled_out]
        if others and together != ["calm"] and rng.random() < TOGETHER:
            together = [rng.choice(others), *together]
        phases.append(Phase(tuple(together), rng.uniform(*length)))
        spent += phases[-1].seconds + min(REST, 2 * length[1])
    return phases


IDLE_CONNECTIONS = 2 * DESCRIPTORS
RUDE_CLIENTS = 20
OVERLOAD = 3.0
"""Times the queries that the instances can answer."""
BURST_ROWS = 16
"""Rows of a request in overload: many queries, and few requests for clients to write."""
FLIPS = 4
"""Different flipped bits that can be told as lies."""

LIES = frozenset({"liar", "flip"})
"""The events in which an instance answers wrongly."""


class Events:
    """Brings about events at `server`, with its `traffic`; what is drawn is drawn from `rng`.

    `other`: the bundle that replaces the server's.
    """

    def __init__(
        self, server: TestedServer, traffic: Traffic, rude: RudeClients, other: Path, rng: Random
    ) -> None:
        self._server = server
        self._traffic = traffic
        self._rude = rude
        self._other = other
        self._rng = rng
        self._by_name: dict[str, Callable[[float], AbstractAsyncContextManager[None]]] = {
            "calm": self._calm,
            "kill": self._kill,
            "stop": self._stop,
            "slow": self._slow,
            "liar": lambda seconds: self._lie("liar"),
            "flip": lambda seconds: self._lie(f"flip-{self._rng.randrange(FLIPS)}"),
            "replace": lambda seconds: self._without_bundle(self._other),
            "delete": lambda seconds: self._without_bundle(None),
            "descriptors": self._no_descriptors,
            "slowloris": lambda seconds: self._rude.slow(RUDE_CLIENTS, self._rng),
            "halves": lambda seconds: self._rude.half(RUDE_CLIENTS, self._rng),
            "unread": lambda seconds: self._rude.deaf(RUDE_CLIENTS // 4),
            "disconnects": lambda seconds: self._mix(impatient=0.4),
            "absurd": lambda seconds: self._mix(absurd=0.4),
            "nonsense": lambda seconds: self._mix(nonsense=0.4),
            "timeouts": lambda seconds: self._mix(timeouts=near(server.service)),
            "overload": self._overload,
            "poison": lambda seconds: self._mix(poison=0.01),
        }

    def during(self, event: str, seconds: float) -> AbstractAsyncContextManager[None]:
        """The event goes on while the context lasts, which is for `seconds`."""
        return self._by_name[event](seconds)

    @asynccontextmanager
    async def _calm(self, seconds: float) -> AsyncIterator[None]:
        yield

    @asynccontextmanager
    async def _kill(self, seconds: float) -> AsyncIterator[None]:
        async def kill() -> None:
            while True:
                self._server.kill(self._rng.randrange(100))
                await asyncio.sleep(seconds / 3)

        async with _beside(kill()):
            yield

    @asynccontextmanager
    async def _stop(self, seconds: float) -> AsyncIterator[None]:
        stopped = self._one_instance()
        for pid in stopped:
            send(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                send(pid, signal.SIGCONT)

    @asynccontextmanager
    async def _slow(self, seconds: float) -> AsyncIterator[None]:
        async def hold_up(pid: int) -> None:
            try:
                while send(pid, signal.SIGSTOP):
                    await asyncio.sleep(0.08)
                    send(pid, signal.SIGCONT)
                    await asyncio.sleep(0.02)
            finally:
                send(pid, signal.SIGCONT)

        async with AsyncExitStack() as slow:
            for pid in self._one_instance():
                await slow.enter_async_context(_beside(hold_up(pid)))
            yield

    def _one_instance(self) -> list[int]:
        """One of the instances that are up, if there is one."""
        there = self._server.instances()
        return [there[self._rng.randrange(INSTANCES) % len(there)]] if there else []

    @asynccontextmanager
    async def _lie(self, name: str) -> AsyncIterator[None]:
        self._traffic.lies_begin()
        self._server.begin_lie(name)
        try:
            yield
        finally:
            self._server.end_lies()
            self._traffic.lies_end()

    @asynccontextmanager
    async def _without_bundle(self, other: Path | None) -> AsyncIterator[None]:
        """The bundle's folder holds another one, or is gone; an instance has to start meanwhile."""
        folder = self._server.model.bundle
        kept = folder.with_name("kept")
        folder.rename(kept)
        try:
            if other is not None:
                shutil.copytree(other, folder)
            self._server.kill(self._rng.randrange(INSTANCES))
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            kept.rename(folder)

    @asynccontextmanager
    async def _no_descriptors(self, seconds: float) -> AsyncIterator[None]:
        self._traffic.breaks = True  # for those who need a new connection
        idle = self._rude.idle(IDLE_CONNECTIONS)
        try:
            await asyncio.sleep(0.5)
            self._server.kill(1)
            yield
        finally:
            for client in idle:
                client.close()
            self._traffic.breaks = False

    @asynccontextmanager
    async def _mix(self, **changes: Any) -> AsyncIterator[None]:
        """The traffic's mix with these changes."""
        before = self._traffic.mix
        self._traffic.mix = replace(before, **changes)
        try:
            yield
        finally:
            self._traffic.mix = before

    @asynccontextmanager
    async def _overload(self, seconds: float) -> AsyncIterator[None]:
        before, rate = self._traffic.mix, self._traffic.rate
        self._traffic.mix = replace(before, rows=(BURST_ROWS,))
        self._traffic.rate = OVERLOAD * INSTANCES / self._server.service / BURST_ROWS
        try:
            yield
        finally:
            self._traffic.mix, self._traffic.rate = before, rate


def near(service: float) -> tuple[float, float]:
    """The range of timeouts near a service time; all in seconds."""
    return 0.5 * service, 4 * service


@asynccontextmanager
async def _beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
