"""The events of a chaos run, a table of context managers, and the clients that are always there."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from random import Random

import numpy as np

from parity_models.serving.protocol import write_request
from parity_models_lab.chaos.known_model import INPUTS, Floats, liar
from parity_models_lab.chaos.server import DESCRIPTORS, INSTANCES, TestedServer
from parity_models_lab.chaos.traffic import (
    BURST_ROWS,
    Traffic,
    ask,
    connection,
    post,
)

OF_FRONTEND = frozenset({"frontend", "restart"})
"""The events in which another frontend starts: on Ray, that takes longer than a phase."""
APART = OF_FRONTEND | {"descriptors", "starved", "liar"}
"""Events of which no two happen at once: they need the server's process, and a server does not
start in front of instances that predict something else."""
TOGETHER = 0.25
"""Share of phases that have two events at once."""
PHASE = (4.0, 8.0)
"""Seconds that events last."""
RUDE_CLIENTS = 20
PAUSE = 0.05
"""Seconds between two acts of a client, or two bytes."""
RUN, HELD = 0.02, 0.08
"""Seconds that a slow process runs, and is stopped, in turns."""
OVERLOAD = 3.0
"""Times the queries that the instances can answer."""
LIES_LAST = 2.0
"""Seconds in which an instance that has stopped lying may still answer."""
_HOLD_UP = """
import os, signal, sys, time
pid, held, run = sys.argv[1:]
while True:
    os.kill(int(pid), signal.SIGSTOP)
    time.sleep(float(held))
    os.kill(int(pid), signal.SIGCONT)
    time.sleep(float(run))
"""

Course = Sequence[tuple[Sequence[str], float]]
"""Phases: events that begin together, and their seconds."""

During = AbstractAsyncContextManager[None]


def draw_course(seed: int, seconds: float, events: Sequence[str]) -> Course:
    """Draw phases for so long, of one event or of two: each comes before one comes again."""
    rng, left = Random(f"{seed}/course"), list[str]()
    phases: list[tuple[Sequence[str], float]] = []
    while sum(lasting for _, lasting in phases) < seconds:
        left = left or rng.sample(events, len(events))
        names = [left.pop()]
        others = set(events) - {*names, "calm", *(APART if names[0] in APART else ())}
        if others and names != ["calm"] and rng.random() < TOGETHER:
            names.append(rng.choice(sorted(others)))
        phases.append((names, rng.uniform(*PHASE)))
    return phases


def _in_json(rows: Floats, values: str = "") -> bytes:
    """Return an HTTP request about rows in JSON, perhaps with their `values` as they are given."""
    body, headers = write_request({"input": rows}, binary=False)
    if values:
        begin = body.index(b'"data":') + 7
        body = body[:begin] + values.encode() + body[body.index(b"]", begin) + 1 :]
    return post(body, headers)


def _send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, unless it is gone, or 0."""
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


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
        await asyncio.gather(*tasks, return_exceptions=True)


class Injector:
    """Injects events into a server with its traffic; victims are drawn from `rng`."""

    def __init__(self, server: TestedServer, traffic: Traffic, service: float, rng: Random) -> None:
        self.server, self._traffic, self._rng = server, traffic, rng
        self._request = _in_json(server.model.rows)
        self.too_much = OVERLOAD * INSTANCES / service / BURST_ROWS

    def victim(self) -> int:
        """Return the process of an instance; 0 if there is none."""
        return self._rng.choice(self.server.instances() or [0])

    async def kill(self) -> None:
        _send(self.victim(), signal.SIGKILL)

    @asynccontextmanager
    async def hold_up(self, pid: int, held: float = HELD) -> AsyncIterator[None]:
        """Stop a process for so long, again and again; by default for four fifths of the time."""
        # By a process of its own, as this one may be held up, too.
        program = (sys.executable, "-S", "-c", _HOLD_UP, *map(str, (pid, held, RUN)))
        holding = await asyncio.create_subprocess_exec(*program, stderr=DEVNULL)
        try:
            yield
        finally:
            _send(holding.pid, signal.SIGTERM)
            await holding.wait()
            _send(pid, signal.SIGCONT)

    @asynccontextmanager
    async def restart(self, *, warm: bool) -> AsyncIterator[None]:
        await asyncio.sleep(0.5)  # so that an outage has a beginning
        await self.server.restart(warm=warm)
        yield

    @asynccontextmanager
    async def lie(self) -> AsyncIterator[None]:
        new = self.server.liar.with_name("new.onnx")
        new.write_bytes(liar(self.server.model))
        self._traffic.lies = True
        new.rename(self.server.liar)
        try:
            yield
        finally:
            self.server.liar.unlink()
            await asyncio.sleep(LIES_LAST)
            self._traffic.lies = False

    @asynccontextmanager
    async def mixed(self, rate: float | None = None, **shares: float) -> AsyncIterator[None]:
        """Change the traffic's rate and its mix."""
        before = self._traffic.rate, self._traffic.mix
        self._traffic.rate, self._traffic.mix = rate or before[0], before[1] | shares
        try:
            yield
        finally:
            self._traffic.rate, self._traffic.mix = before

    # Clients whose queries are not counted.

    @asynccontextmanager
    async def crowd(self) -> AsyncIterator[None]:
        """Let clients press on the frontend while the context lasts, whatever else happens."""
        rows = self.server.model.rows[:100]
        digits = ",".join(f"{value:.50f}" for value in rows.ravel())
        requests = [
            (10.0, 0.0, _in_json(np.resize(rows, (1000, INPUTS)))),
            (10.0, PAUSE, _in_json(rows, f"[{digits}]")),
            (10.0, PAUSE, _in_json(np.zeros((17_000, INPUTS), np.float32))),  # too long an answer
            (0.065, PAUSE, _in_json(rows)),
        ]
        async with AsyncExitStack() as crowd:
            for patience, pause, request in requests:
                press = partial(self.press, request, patience)
                await crowd.enter_async_context(_repeated(1, press, pause))
            await crowd.enter_async_context(_repeated(RUDE_CLIENTS, self.linger))
            yield

    async def press(self, request: bytes, patience: float) -> None:
        """Ask, and go when the answer begins, or when out of patience."""
        with suppress(TimeoutError, EOFError):
            async with asyncio.timeout(patience):
                await ask(self.server.port, request)

    async def send_half(self) -> None:
        await self.press(self._request[: len(self._request) // 2], 0.1)

    async def linger(self) -> None:
        """Stay until the server ends the connection, or for some seconds."""
        async with connection(self.server.port) as (reader, writer):
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: server\r\n\r\n")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rng.uniform(1.0, 10.0)):
                    await reader.read()

    async def trickle(self) -> None:
        """Send a request byte by byte from its head, or its body, on."""
        async with connection(self.server.port) as (_, writer):
            begin = self._rng.choice((0, self._request.index(b"\r\n\r\n") + 10))
            writer.write(self._request[:begin])
            for byte in self._request[begin:]:
                writer.write(bytes((byte,)))
                await writer.drain()
                await asyncio.sleep(4 * PAUSE)


EVENTS: Mapping[str, Callable[[Injector], During]] = {
    "calm": lambda to: _repeated(0, to.kill),
    "kill": lambda to: _repeated(1, to.kill, 2.0),
    "stop": lambda to: to.hold_up(to.victim(), held=60.0),
    "slow": lambda to: to.hold_up(to.victim()),
    "frontend": lambda to: to.restart(warm=False),
    "restart": lambda to: to.restart(warm=True),
    "starved": lambda to: to.hold_up(to.server.pid),
    "liar": lambda to: to.lie(),
    "descriptors": lambda to: _repeated(2 * DESCRIPTORS, to.linger),
    "slowloris": lambda to: _repeated(RUDE_CLIENTS, to.trickle),
    "halves": lambda to: _repeated(RUDE_CLIENTS, to.send_half),
    "disconnects": lambda to: to.mixed(impatient=0.4),
    "absurd": lambda to: to.mixed(absurd=0.4),
    "nonsense": lambda to: to.mixed(nonsense=0.4),
    "overload": lambda to: to.mixed(to.too_much, burst=0.9),
    "poison": lambda to: to.mixed(poison=0.01),
}
"""Events by name, as lab/notes/reliability.md describes them; each lasts as long as its context."""
