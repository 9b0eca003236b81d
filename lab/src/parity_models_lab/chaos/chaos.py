"""The command `chaos`: a server under load and faults, and every query accounted for.

Events are a table of context managers; some clients are always there.
"""

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random

import click
import msgspec

from parity_models.errors import ServingError, UserError
from parity_models.options import option
from parity_models.serving.client import Client
from parity_models_lab.chaos.server import (
    DESCRIPTORS,
    INPUTS,
    INSTANCES,
    SLOW,
    Engine,
    TestedServer,
    liar,
    metric,
    write_known_model,
)
from parity_models_lab.chaos.traffic import (
    BURST_ROWS,
    PAUSE,
    Page,
    Traffic,
    ask,
    connection,
    in_json,
    now,
    repeated,
)
from parity_models_lab.results import OutFolder, Row, Seed, check_out, report

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
RUN, HELD = 0.02, 0.08
"""Seconds that a slow process runs, and is stopped, in turns."""
DEADLINE = 3.0
"""Seconds that the server gives a query."""
SERVICE = 0.005
"""Median seconds of a unit."""
RECOVERY = 60.0
"""Seconds in which instances may come up again after an event."""
RECYCLED = ("hung", "quarantined")
"""Reasons for which an instance is started again."""
OVERLOAD = 3.0 * INSTANCES / SERVICE / BURST_ROWS
"""Requests a second, of three times the queries that the instances can answer."""
LIES_LAST = 2.0
"""Seconds in which an instance that has stopped lying may still answer."""
_HOLD_UP = 'while kill -STOP "$0"; do sleep "$1"; kill -CONT "$0"; sleep "$2"; done'


Phases = list[tuple[list[str], float]]


def draw_course(seed: int, seconds: float, events: Sequence[str]) -> Phases:
    """Draw phases for so long: one event, or two that begin together, and their seconds. Each event
    comes before one comes again."""
    rng, left, phases = Random(f"{seed}/course"), list[str](), Phases()
    while sum(lasting for _, lasting in phases) < seconds:
        left = left or rng.sample(events, len(events))
        names = [left.pop()]
        others = set(events) - {*names, "calm", *(APART if names[0] in APART else ())}
        if others and names != ["calm"] and rng.random() < TOGETHER:
            names.append(rng.choice(sorted(others)))
        phases.append((names, rng.uniform(*PHASE)))
    return phases


def _send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process, unless it is gone, or 0."""
    if pid:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


class Injector:
    """Injects events into a server with its traffic; victims are drawn from `rng`."""

    def __init__(self, server: TestedServer, traffic: Traffic, rng: Random) -> None:
        self.server, self._traffic, self._rng = server, traffic, rng
        self._request = in_json()

    def victim(self) -> int:
        """Return the process of an instance; 0 if there is none."""
        return self._rng.choice(self.server.instances() or [0])

    async def kill(self) -> None:
        _send(self.victim(), signal.SIGKILL)

    @asynccontextmanager
    async def hold_up(self, pid: int, held: float = HELD) -> AsyncIterator[None]:
        """Stop a process for so long, again and again; by default for four fifths of the time."""
        if not pid:
            yield
            return
        # By a process of its own, as this one may be held up, too.
        program = ("sh", "-c", _HOLD_UP, *map(str, (pid, held, RUN)))
        holding = await asyncio.create_subprocess_exec(
            *program, stderr=DEVNULL, start_new_session=True
        )
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(holding.pid, signal.SIGTERM)
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
        requests = [
            (1000, "0.12345678", 10.0, 0.001),
            (100, f"{1 / 3:.50f}", 10.0, PAUSE),
            (17_000, "0", 10.0, PAUSE),  # too long an answer
            (100, "0.12345678", 0.065, PAUSE),
        ]
        async with AsyncExitStack() as crowd:
            for rows, value, patience, pause in requests:
                data = msgspec.Raw(f"[{','.join([value] * rows * INPUTS)}]".encode())
                press = partial(self.press, in_json(shape=[rows, INPUTS], data=data), patience)
                await crowd.enter_async_context(repeated(1, press, pause))
            await crowd.enter_async_context(repeated(RUDE_CLIENTS, self.linger))
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


EVENTS: Mapping[str, Callable[[Injector], AbstractAsyncContextManager[None]]] = {
    "calm": lambda to: repeated(0, to.kill),
    "kill": lambda to: repeated(1, to.kill, 2.0),
    "stop": lambda to: to.hold_up(to.victim(), held=60.0),
    "slow": lambda to: to.hold_up(to.victim()),
    "frontend": lambda to: to.restart(warm=False),
    "restart": lambda to: to.restart(warm=True),
    "starved": lambda to: to.hold_up(to.server.pid),
    "liar": lambda to: to.lie(),
    "descriptors": lambda to: repeated(2 * DESCRIPTORS, to.linger),
    "slowloris": lambda to: repeated(RUDE_CLIENTS, to.trickle),
    "halves": lambda to: repeated(RUDE_CLIENTS, to.send_half),
    "disconnects": lambda to: to.mixed(impatient=0.4),
    "absurd": lambda to: to.mixed(absurd=0.4),
    "nonsense": lambda to: to.mixed(nonsense=0.4),
    "overload": lambda to: to.mixed(OVERLOAD, burst=0.9),
    "poison": lambda to: to.mixed(poison=0.01),
}
"""Events by name, as lab/notes/reliability.md describes them; each lasts as long as its context."""


def chaos(
    engine: Engine = option(Engine.LOCAL, "What runs the models."),
    minutes: float = option(5.0, "About how long.", unit="min", ge=0.01),
    seed: Seed = 0,
    out: OutFolder = Path("runs/chaos"),
    events: str | None = option(
        None,
        "Only these, separated by commas; lab/notes/reliability.md lists them.",
        metavar="EVENT,...",
    ),
) -> None:
    """Serve under load and faults; account for every query.

    A server process of its own, clients over HTTP and gRPC, and a course of kills, pauses, lies,
    rude clients and absurd inputs, drawn from the seed.
    """
    there = [each for each in EVENTS if engine is not Engine.RAY or each not in OF_FRONTEND]
    wanted = events.split(",") if events else there
    for event in wanted:
        if event not in there:
            raise UserError(f"there is no event {event!r}; there are {', '.join(there)}")
    check_out(out)
    course = draw_course(seed, minutes * 60, wanted)
    rows, queries = asyncio.run(_run(engine, course, minutes * 60, seed, out / f"chaos-{engine}"))
    title = f"Chaos on the engine {engine}, seed {seed}"
    report(title, rows, out / f"chaos-{engine}.json", queries=queries)
    ended = sum(int(str(row["queries"])) for row in rows)
    click.echo(f"{ended:,} of {queries:,} queries are accounted for.")


async def _run(
    engine: Engine, course: Phases, seconds: float, seed: int, folder: Path
) -> tuple[list[Row], int]:
    """Run a course of events against a server of its own. Return a row for each event, and one for
    phases of two at once, and the number of queries that were sent."""
    model = write_known_model(folder, seed, SLOW)
    server = TestedServer(model, engine, folder, SERVICE, deadline=DEADLINE, max_batch=32)
    pages: dict[str, Page] = {}
    async with server.running() as client:
        traffic = Traffic(server, client, seed=seed, deadline=DEADLINE)
        injector = Injector(server, traffic, Random(f"{seed}/events"))
        all_up = await _instances_up(client)
        if not all_up:
            raise ServingError("the server does not say how many instances are up; see its log")
        ends = now() + seconds
        for number, (names, lasting) in enumerate(course, 1):
            if now() > ends:
                break
            name = names[0] if len(names) == 1 else "two at once"
            page = traffic.page = pages.setdefault(name, Page())
            page.times += 1
            before = await _recycled(client)
            async with traffic.offered(), injector.crowd():
                async with AsyncExitStack() as happening:
                    for each in names:
                        await happening.enter_async_context(EVENTS[each](injector))
                    await asyncio.sleep(lasting)
                took = await _recover(client, traffic, all_up)
            page.took("recovery", took)
            page.recycled += await _recycled(client) - before
            events = " + ".join(names)
            click.echo(f"{number}, {events}: full strength after {took:.1f} s", err=True)
    return [page.row(name) for name, page in pages.items()], traffic.sent


async def _instances_up(client: Client) -> float:
    return await metric(client, "parm_instances_up", role="deployed")


async def _recycled(client: Client) -> Counter[str]:
    """Return how many instances have been started again, by the reason."""
    name = "parm_instances_recycled_total"
    return Counter({each: int(await metric(client, name, reason=each)) for each in RECYCLED})


async def _recover(client: Client, traffic: Traffic, all_up: float) -> float:
    """Wait until all instances are up and three queries in turn are answered, for up to RECOVERY.
    Return the seconds that took."""
    began, good = now(), 0
    while good < 3 and now() - began < RECOVERY:
        is_up = await _instances_up(client) >= all_up
        good = good + 1 if is_up and await traffic.probe() else 0
        await asyncio.sleep(0.05)
    return now() - began
