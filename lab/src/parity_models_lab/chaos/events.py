"""The events of a chaos run: a course of them drawn from the seed, and how each is caused."""

import asyncio
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from parity_models.errors import UserError
from parity_models_lab.chaos.known_model import INPUTS, Floats
from parity_models_lab.chaos.server import DESCRIPTORS, INSTANCES, Engine, TestedServer
from parity_models_lab.chaos.traffic import PATH, Drawn, Traffic, infer_request
from parity_models_lab.processes import send

EVENTS = (
    *("calm", "kill", "stop", "slow", "frontend", "restart", "starved", "liar", "flip", "sly"),
    *("replace", "delete", "descriptors", "slowloris", "halves", "unread", "disconnects"),
    *("absurd", "nonsense", "timeouts", "overload", "poison"),
)
LIES = frozenset({"liar", "flip", "sly"})
"""The events in which an instance answers wrongly."""
OF_FRONTEND = frozenset({"frontend", "restart"})
"""The events in which another frontend starts: on Ray, that takes longer than a phase."""
ALIKE = (
    OF_FRONTEND | {"replace", "delete"},
    OF_FRONTEND | {"descriptors", "starved"},
    OF_FRONTEND | LIES,
)
"""Events that exclude each other: both need the bundle's folder, or the server's process; and a
server refuses to start in front of one that predicts something else."""
TOGETHER = 0.25
"""Share of phases that have two events at once."""
PHASE = (4.0, 8.0)
"""Seconds that events last."""
REST = 1.0
"""Minimum seconds from an event's end to the next one: recovery, and an idle spell."""
IDLE_CONNECTIONS = 2 * DESCRIPTORS
RUDE_CLIENTS = 20
BYTE_EVERY = 0.2
"""Seconds between two bytes of a slow client."""
RUN, HELD = 0.02, 0.08
"""Seconds that a slow process runs, and is stopped, in turns."""
OVERLOAD = 3.0
"""Times the queries that the instances can answer."""
BURST_ROWS = 16
"""Rows of a request in overload: many queries, and few requests for clients to write."""
FLIPS = 4
"""The number of flipped bits to choose from."""
PRESSING_ROWS, CROWD_ROWS = 1000, 100
"""Rows of the crowd's requests: of a client that asks again at once, and of others."""
LARGE_ROWS = 1000, 17_000
PAUSE = 0.05
"""Seconds between two acts of others."""
LINGERS = 20
"""Connections of the crowd that idle."""

During = AbstractAsyncContextManager[object]


@dataclass(frozen=True)
class Phase:
    """Events that begin together, and last for `seconds`."""

    events: tuple[str, ...]
    seconds: float

    @property
    def name(self) -> str:
        return self.events[0] if len(self.events) == 1 else "two at once"


def draw_course(
    seed: int,
    seconds: float,
    events: Sequence[str] = (),
    length: tuple[float, float] = PHASE,
    engine: Engine = Engine.LOCAL,
) -> list[Phase]:
    """Draw phases for at least so many seconds: each event once, then each again, and pairs.

    Raises UserError for events that the engine's servers do not have.
    """
    there = [each for each in EVENTS if engine is not Engine.RAY or each not in OF_FRONTEND]
    unknown = sorted(set(events) - set(there))
    if unknown:
        raise UserError(f"there is no event {unknown[0]!r}; there are {', '.join(there)}")
    known = list(events or there)
    rng = Random(f"{seed}/course")
    phases: list[Phase] = []
    left: list[str] = []
    spent = 0.0
    while spent < seconds:
        if not left:
            left = rng.sample(known, len(known))
        together = [left.pop()]
        ruled_out = {"calm", *together}.union(*(each for each in ALIKE if together[0] in each))
        others = [event for event in known if event not in ruled_out]
        if others and together != ["calm"] and rng.random() < TOGETHER:
            together = [rng.choice(others), *together]
        phases.append(Phase(tuple(together), rng.uniform(*length)))
        spent += phases[-1].seconds + min(REST, 2 * length[1])
    return phases


class Events:
    """Causes events at a server with its traffic.

    Args:
        server: The server under test.
        traffic: Its load, whose mix some events change.
        other: The bundle that replaces the server's.
        rng: Draws victims.

    """

    def __init__(self, server: TestedServer, traffic: Traffic, other: Path, rng: Random) -> None:
        self._server = server
        self._traffic = traffic
        self._other = other
        self._rng = rng
        at = urlsplit(server.url)
        self._address = at.hostname, at.port
        self._head, body = self._post(server.model.rows)
        self._request = self._head + body
        rows = server.model.rows[:CROWD_ROWS]
        many = np.resize(server.model.rows, (PRESSING_ROWS, INPUTS))
        self._pressing, self._many = (b"".join(self._post(each)) for each in (many, rows))
        # Short requests whose answers in JSON are long: of which one is refused.
        self._large, self._larger = (
            b"".join(self._post(np.zeros((each, INPUTS), np.float32), in_json=True))
            for each in LARGE_ROWS
        )
        # As many digits as a value may have.
        values = ",".join(f"{value:.50f}" for value in rows.ravel())
        self._long = b"".join(self._post(rows, f"[{values}]".encode()))

    def _post(
        self, rows: Floats, values: bytes | None = None, *, in_json: bool = False
    ) -> tuple[bytes, bytes]:
        """Return head and body of a request in JSON about `rows`, with these values for them, whose
        answer may be in JSON, too."""
        drawn = Drawn.in_json(rows)
        if values is not None:
            drawn = replace(drawn, values=values)
        body, headers = infer_request(drawn, 0)
        if in_json:
            body = body.replace(b'"binary_data_output":true', b"")
        lines = [f"POST {PATH} HTTP/1.1", "Host: server", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode(), body

    def during(self, event: str, seconds: float) -> During:
        """Cause the event while the context lasts, which is for `seconds`."""
        near_service = (0.5 * self._server.service, 4 * self._server.service)
        causes: dict[str, Callable[[], During]] = {
            "calm": lambda: nullcontext(),
            "kill": lambda: _repeated(1, lambda: self._kill(seconds / 3)),
            "stop": self._stop,
            "slow": lambda: self._slow(self._one_instance()),
            "frontend": lambda: self._another_frontend(warm=False),
            "restart": lambda: self._another_frontend(warm=True),
            "starved": self._starve,
            "liar": lambda: self._lie("liar"),
            "flip": lambda: self._lie(f"flip-{self._rng.randrange(FLIPS)}"),
            "sly": lambda: self._lie("sly"),
            "replace": lambda: self._without_bundle(self._other),
            "delete": lambda: self._without_bundle(None),
            "descriptors": self._no_descriptors,
            "slowloris": lambda: _repeated(RUDE_CLIENTS, self._trickle),
            "halves": lambda: _repeated(RUDE_CLIENTS, self._send_half),
            "unread": lambda: _repeated(RUDE_CLIENTS // 4, self._read_nothing),
            "disconnects": lambda: self._mix(impatient=0.4),
            "absurd": lambda: self._mix(absurd=0.4),
            "nonsense": lambda: self._mix(nonsense=0.4),
            "timeouts": lambda: self._mix(timeouts=near_service),
            "overload": self._overload,
            "poison": lambda: self._mix(poison=0.01),
        }
        return causes[event]()

    async def _kill(self, pause: float) -> None:
        self._server.kill(self._rng.randrange(100))
        await asyncio.sleep(pause)

    @asynccontextmanager
    async def _stop(self) -> AsyncIterator[None]:
        stopped = self._one_instance()
        for pid in stopped:
            send(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                send(pid, signal.SIGCONT)

    @asynccontextmanager
    async def _starve(self) -> AsyncIterator[None]:
        self._traffic.share = RUN / (RUN + HELD)
        try:
            async with self._slow([self._server.pid]):
                yield
        finally:
            self._traffic.share = 1.0

    @asynccontextmanager
    async def _slow(self, processes: Sequence[int]) -> AsyncIterator[None]:
        """Let processes run for a fifth of the time."""
        # By a process of its own, as this one may be held up, too.
        holding = [
            await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", _HOLD_UP, str(pid))
            for pid in processes
        ]
        try:
            yield
        finally:
            for each, pid in zip(holding, processes, strict=True):
                send(each.pid, signal.SIGTERM)
                await each.wait()
                send(pid, signal.SIGCONT)

    def _one_instance(self) -> list[int]:
        """Return one of the running instances, if there is one."""
        there = self._server.instances()
        return [there[self._rng.randrange(INSTANCES) % len(there)]] if there else []

    @asynccontextmanager
    async def _another_frontend(self, *, warm: bool) -> AsyncIterator[None]:
        """Start another frontend: before the first is asked to end, or after it was killed."""
        await asyncio.sleep(0.5)  # so that an outage has a beginning
        self._traffic.breaks = not warm
        try:
            await self._server.restart(warm=warm)
            yield
        finally:
            self._traffic.breaks = False

    @asynccontextmanager
    async def _lie(self, name: str) -> AsyncIterator[None]:
        self._traffic.liar_until = float("inf")
        self._server.begin_lie(name)
        try:
            yield
        finally:
            self._server.end_lies()
            self._traffic.lies_end()

    @asynccontextmanager
    async def _without_bundle(self, other: Path | None) -> AsyncIterator[None]:
        """Replace or delete the bundle's folder; an instance has to start meanwhile."""
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
    async def _no_descriptors(self) -> AsyncIterator[None]:
        self._traffic.breaks = True  # for clients that need a new connection
        idle = [socket.socket() for _ in range(IDLE_CONNECTIONS)]
        try:
            for client in idle:
                client.setblocking(False)
                with suppress(OSError):
                    client.connect(self._address)
            await asyncio.sleep(0.5)
            self._server.kill(1)
            yield
        finally:
            for client in idle:
                client.close()
            self._traffic.breaks = False

    @asynccontextmanager
    async def _mix(self, **changes: Any) -> AsyncIterator[None]:
        """Change the traffic's mix."""
        before = self._traffic.mix
        self._traffic.mix = replace(before, **changes)
        try:
            yield
        finally:
            self._traffic.mix = before

    @asynccontextmanager
    async def _overload(self) -> AsyncIterator[None]:
        before = self._traffic.rate
        self._traffic.rate = OVERLOAD * INSTANCES / self._server.service / BURST_ROWS
        try:
            async with self._mix(rows=(BURST_ROWS,)):
                yield
        finally:
            self._traffic.rate = before

    # Rude clients: none of their queries is in the ledger.

    @asynccontextmanager
    async def crowd(self) -> AsyncIterator[None]:
        """Let clients press on the frontend while the context lasts, whatever else happens."""
        async with AsyncExitStack() as crowd:
            for times, pause, act in (
                (1, 0.0, lambda: self._ask(self._pressing)),
                (1, PAUSE, lambda: self._ask(self._long)),
                (1, PAUSE, lambda: self._ask(self._large)),
                (1, PAUSE, lambda: self._ask(self._larger)),
                (1, PAUSE, lambda: self._ask(self._many, patience=0.065)),
                (LINGERS, PAUSE, self._linger),
            ):
                await crowd.enter_async_context(_repeated(times, act, pause))
            yield

    async def _ask(self, request: bytes, patience: float = 10.0) -> None:
        """Ask, and go after the answer, or when out of patience."""
        async with self._connection() as (reader, writer):
            writer.write(request)
            with suppress(TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(patience):
                    await reader.readuntil(b"\r\n\r\n")

    async def _linger(self) -> None:
        """Show no token, and stay until the server ends the connection, or for some seconds."""
        async with self._connection() as (reader, writer):
            writer.write(_LIVE)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rng.uniform(1.0, 10.0)):
                    await reader.read()

    async def _trickle(self) -> None:
        """Send the head, or the body, byte by byte."""
        async with self._connection() as (_, writer):
            begin = self._rng.choice((0, len(self._head) + 6))
            writer.write(self._request[:begin])
            for at in range(begin, len(self._request)):
                writer.write(self._request[at : at + 1])
                await writer.drain()
                await asyncio.sleep(BYTE_EVERY)

    async def _send_half(self) -> None:
        async with self._connection() as (_, writer):
            writer.write(self._request[: self._rng.randrange(1, len(self._request))])
            await writer.drain()
            await asyncio.sleep(self._rng.uniform(0.0, 0.1))

    async def _read_nothing(self) -> None:
        """Ask for metrics, whose answers are large, and read none."""
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            await loop.sock_connect(client, self._address)
            while True:
                await loop.sock_sendall(client, b"GET /metrics HTTP/1.1\r\nHost: server\r\n\r\n")
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


_HOLD_UP = f"""
import os, signal, sys, time
while True:
    os.kill(int(sys.argv[1]), signal.SIGSTOP)
    time.sleep({HELD})
    os.kill(int(sys.argv[1]), signal.SIGCONT)
    time.sleep({RUN})
"""
_LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: server\r\n\r\n"


@asynccontextmanager
async def _repeated(
    times: int, act: Callable[[], Awaitable[None]], pause: float = PAUSE
) -> AsyncIterator[None]:
    """Let so many tasks act again and again while the context lasts."""

    async def again() -> None:
        while True:
            with suppress(OSError):
                await act()
            await asyncio.sleep(pause)

    tasks = [asyncio.create_task(again()) for _ in range(times)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
