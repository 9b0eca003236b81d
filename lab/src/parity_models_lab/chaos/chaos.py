"""The command `chaos`: a server under load and faults, and every query accounted for."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from parity_models.errors import ServingError, UserError
from parity_models.options import MINUTES, Option
from parity_models.serving.client import Client
from parity_models_lab.chaos import health
from parity_models_lab.chaos.events import (
    EVENTS,
    HELD,
    OF_FRONTEND,
    RUN,
    Course,
    Injector,
    draw_course,
)
from parity_models_lab.chaos.known_model import SLOW, write_known_model
from parity_models_lab.chaos.server import (
    RESULTS,
    ChaosOut,
    Engine,
    EngineName,
    TestedServer,
    metric,
    running,
)
from parity_models_lab.chaos.traffic import Page, Traffic
from parity_models_lab.results import Row, check_out, report

DEADLINE = 3.0
"""Seconds that the server gives a query."""
SERVICE = 0.005
"""Median seconds of a unit."""
RECOVERY = 60.0
"""Seconds in which instances may come up again after an event."""
RECYCLED = ("hung", "quarantined")
"""Reasons for which an instance is started again."""


def chaos(
    engine: EngineName = Engine.LOCAL,
    minutes: Annotated[
        float, Option("About how long.", unit=MINUTES, typed="min", at_least=0.01)
    ] = 5.0,
    seed: Annotated[int, Option("Fixes the course of events and the load.", at_least=0)] = 0,
    out: ChaosOut = RESULTS,
    events: Annotated[
        str | None,
        Option(
            "Only these, separated by commas; lab/notes/reliability.md lists them.",
            metavar="EVENT,...",
        ),
    ] = None,
) -> None:
    """Serve under load and faults; account for every query.

    A server process of its own, clients over HTTP, and a course of kills, pauses, lies,
    rude clients and absurd inputs, drawn from the seed.
    """
    check_out(out)
    there = [each for each in EVENTS if engine is not Engine.RAY or each not in OF_FRONTEND]
    wanted = events.split(",") if events else there
    for event in wanted:
        if event not in there:
            raise UserError(f"there is no event {event!r}; there are {', '.join(there)}")
    course = draw_course(seed, minutes * 60, wanted)
    rows, queries = asyncio.run(_run(engine, course, minutes * 60, seed, out / f"chaos-{engine}"))
    title = f"Chaos on the engine {engine}, seed {seed}"
    report(title, rows, out / f"chaos-{engine}.json", queries=queries)
    ended = sum(int(str(row["queries"])) for row in rows)
    typer.echo(f"{ended:,} of {queries:,} queries are accounted for.")


async def _run(
    engine: Engine, course: Course, seconds: float, seed: int, folder: Path
) -> tuple[list[Row], int]:
    """Run a course of events against a server of its own.

    Returns a row for each event, and one for phases of two at once (see `Page.row`), and the number
    of queries that were sent. Raises ServingError if the server does not start.
    """
    model = write_known_model(folder, seed, SLOW)
    options = ("--deadline", str(DEADLINE), "--max-batch", "32")
    server = TestedServer(model, engine, folder, SERVICE, options)
    pages: dict[str, Page] = {}
    async with running(server) as client:
        traffic = Traffic(server, client, seed=seed, deadline=DEADLINE)
        injector = Injector(server, traffic, SERVICE, Random(f"{seed}/events"))
        all_up = await _instances_up(client)
        if not all_up:
            raise ServingError("the server does not say how many instances are up; see its log")
        ends = _now() + seconds
        async with _asking_for_health(server, traffic):
            for number, (names, lasting) in enumerate(course, 1):
                if _now() > ends:
                    break
                name = names[0] if len(names) == 1 else "two at once"
                page = traffic.page = pages.setdefault(name, Page())
                page.times += 1
                before = await _recycled(client)
                traffic.share = RUN / (RUN + HELD) if "starved" in names else 1.0
                async with traffic.offered(), injector.crowd():
                    async with AsyncExitStack() as happening:
                        for each in names:
                            await happening.enter_async_context(EVENTS[each](injector))
                        await asyncio.sleep(lasting)
                    traffic.share = 1.0
                    took = await _recover(client, traffic, all_up)
                page.took("recovery", took)
                page.recycled += await _recycled(client) - before
                typer.echo(
                    f"{number}, {' + '.join(names)}: full strength after {took:.1f} s", err=True
                )
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
    began, good = _now(), 0
    while good < 3 and _now() - began < RECOVERY:
        is_up = await _instances_up(client) >= all_up
        good = good + 1 if is_up and await traffic.probe() else 0
        await asyncio.sleep(0.05)
    return _now() - began


@asynccontextmanager
async def _asking_for_health(server: TestedServer, traffic: Traffic) -> AsyncIterator[None]:
    """Enter the server's answers to whether it is live on the page, while the context lasts."""
    program = (health.__file__, str(server.port), str(server.pid_file))
    asking = await asyncio.create_subprocess_exec(sys.executable, *program, stdout=PIPE)
    assert asking.stdout is not None
    answers = asking.stdout

    async def read() -> None:
        gone = None
        async for line in answers:
            took, waited = map(float, line.split())
            if took < 0:
                gone = _now() if gone is None else gone
                traffic.page.took("away", _now() - gone)
                continue
            gone = None
            traffic.page.took("health", took)
            # What may run for a fifth of the time loses five seconds by each that it waits.
            traffic.page.took("own health", took - min(took, waited / traffic.share))

    reading = asyncio.create_task(read())
    try:
        yield
    finally:
        os.kill(asking.pid, signal.SIGTERM)
        await asking.wait()
        await reading


def _now() -> float:
    return asyncio.get_running_loop().time()
