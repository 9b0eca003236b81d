"""A chaos run: a real server under load, a course of faults, and every query accounted for."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

from parity_models.errors import ServingError
from parity_models.serving.client import Client
from parity_models_lab.chaos import health
from parity_models_lab.chaos.events import FLIPS, LIES, PHASE, Events, Phase, draw_course
from parity_models_lab.chaos.known_model import (
    SLOW,
    flipped,
    other_weights,
    sly,
    write_known_model,
    write_other_bundle,
)
from parity_models_lab.chaos.ledger import Ending, Ledger
from parity_models_lab.chaos.server import (
    DESCRIPTORS,
    Engine,
    TestedServer,
    instances_up,
    metrics,
    running,
)
from parity_models_lab.chaos.traffic import Traffic
from parity_models_lab.processes import send
from parity_models_lab.results import Row

DEADLINE = 3.0
"""Seconds that the server gives a query."""
SERVICE = 0.005
"""Median seconds of a unit."""
MAX_BATCH = 32
RECOVERY = 60.0
"""Seconds within which all instances must be up again after an event."""
AT_ONCE = 1.0
"""Seconds within which an idle server must answer, on a busy machine."""
QUICK = ("kill", "absurd", "nonsense", "timeouts", "disconnects")
"""The events of a quick run, from which a server recovers at once."""
QUICK_PHASE = (1.0, 1.5)
MAX_LIES = 500
"""Wrong answers of an instance that is wrong where golden queries are not, until it is found."""
RECYCLED = 'parm_instances_recycled_total{{reason="{}"}}'
CAUSES = {"quarantined": LIES, "hung": frozenset({"stop", "slow", "starved"})}
"""The events in which instances are recycled for a reason; in all others they are healthy."""


async def run_chaos(
    engine: Engine,
    *,
    minutes: float,
    seed: int,
    rate: float,
    folder: Path,
    events: Sequence[str] = (),
    quick: bool = False,
    tell: Callable[[str], None],
) -> tuple[list[Row], dict[str, Any]]:
    """Run a course of events against a server of its own.

    Returns the rows of the ledger, and further facts: `failures` are texts, each with the seconds
    since the run began, of which there are `failed` in all, and `memory_MiB` is the growth of all
    processes' resident memory.

    Args:
        engine: What runs the server's instances.
        minutes: The run's length, about.
        seed: Fixes the course, the load and the model.
        rate: Requests a second, of 2.8 queries on average.
        folder: For the server's files.
        events: Only these; by default all.
        quick: Run for seconds, with events that a server recovers from at once.
        tell: Progress callback.

    Raises:
        UserError: There is no such event.
        ServingError: The server does not start.

    """
    if quick:
        events, minutes = events or QUICK, min(minutes, 0.2)
    course = draw_course(seed, minutes * 60, events, QUICK_PHASE if quick else PHASE, engine)
    model = write_known_model(folder, seed, 1 if quick else SLOW)
    rng = Random(f"{seed}/events")
    lies = {f"flip-{each}": flipped(model, rng) for each in range(FLIPS)}
    server = TestedServer(
        model,
        engine,
        folder,
        deadline=DEADLINE,
        service=SERVICE,
        options=("--max-batch", str(MAX_BATCH)),
        lies=lies | {"liar": other_weights(seed), "sly": sly(model)},
        descriptors=DESCRIPTORS,
    )
    ledger = Ledger()
    async with running(server) as (http, grpc):
        began, memory = _now(), server.memory()
        traffic = Traffic(model, http, grpc, ledger, rate=rate, seed=seed, deadline=DEADLINE)
        events_here = Events(server, traffic, write_other_bundle(folder, seed), rng)
        async with _asking_for_health(server, traffic, ledger):
            await _Run(server, http, ledger, traffic, events_here).run(course, minutes * 60, tell)
        for name, value in (await metrics(http)).items():
            if name.startswith("parm_repairs_total") and value:
                ledger.fail(_now(), "", f"{name} is {value:g}")
        grown = (server.memory() - memory) / 2**20
    if ledger.ended_queries != ledger.sent_queries:
        text = f"{ledger.ended_queries} of {ledger.sent_queries} queries are accounted for"
        ledger.fail(_now(), "", text)
    failures = [
        f"{at - began:.1f} s, {event or 'any'}: {text}" for at, event, text in ledger.failures
    ]
    return list(ledger.rows()), {
        "queries": ledger.sent_queries,
        "failed": ledger.failed,
        "failures": failures,
        "memory_MiB": grown,
    }


@dataclass
class _Run:
    server: TestedServer
    http: Client
    ledger: Ledger
    traffic: Traffic
    events: Events
    all_up: int = 0

    async def run(
        self, course: Sequence[Phase], seconds: float, tell: Callable[[str], None]
    ) -> None:
        """Run the phases for about so long."""
        end = _now() + seconds
        self.all_up = instances_up(await metrics(self.http))
        if not self.all_up:
            raise ServingError("the server does not say how many instances are up; see its log")
        for number, phase in enumerate(course, 1):
            if _now() > end:
                break
            failed = self.ledger.failed
            await self._run_phase(phase)
            if not self.server.running:
                self.ledger.fail(_now(), phase.name, "the server's process has ended")
                break
            bad = self.ledger.failed - failed
            took = self.ledger.page(phase.name).full_strength[-1]
            tell(
                f"{number}, {' + '.join(phase.events)}: full strength after {took:.1f} s"
                + (f"; {bad} FAILURES" if bad else "")
            )

    async def _run_phase(self, phase: Phase) -> None:
        self.traffic.phase = phase.name
        before, page = await metrics(self.http), self.ledger.page(phase.name)
        wrong = page.count(Ending.WRONG)
        self.ledger.begin_quiet()
        async with self.traffic.offered(), self.events.crowd():
            async with AsyncExitStack() as events:
                for event in phase.events:
                    await events.enter_async_context(self.events.during(event, phase.seconds))
                await asyncio.sleep(phase.seconds)
            await self._recover(phase)
        took = await self.traffic.probe()
        if took is None or took > AT_ONCE:
            text = "did not answer" if took is None else f"took {took:.1f} s to answer"
            self.ledger.fail(_now(), phase.name, f"an idle server {text} the next request")
        wrong = page.count(Ending.WRONG) - wrong
        if "sly" in phase.events and wrong > MAX_LIES:
            self.ledger.fail(_now(), phase.name, f"a liar answered {wrong} queries wrongly")
        after = await metrics(self.http)
        for reason, causes in CAUSES.items():
            was, now = (each.get(RECYCLED.format(reason), 0.0) for each in (before, after))
            if causes.isdisjoint(phase.events) and now > was:
                self.ledger.fail(_now(), phase.name, f"a healthy instance was {reason}")

    async def _recover(self, phase: Phase) -> None:
        """Wait until all instances are up and three queries in turn are answered."""
        began, good = _now(), 0
        while good < 3 and self.server.running:
            up = instances_up(await metrics(self.http))
            good = good + 1 if up >= self.all_up and await self.traffic.probe() else 0
            if _now() - began > RECOVERY:
                text = f"not at full strength again: {up} of {self.all_up} instances are up"
                self.ledger.fail(_now(), phase.name, text)
                break
            await asyncio.sleep(0.05)
        self.ledger.page(phase.name).full_strength.append(_now() - began)


@asynccontextmanager
async def _asking_for_health(
    server: TestedServer, traffic: Traffic, ledger: Ledger
) -> AsyncIterator[None]:
    """Enter the server's answers to whether it is live into the ledger, while the context lasts."""
    at = urlsplit(server.url)
    asking = await asyncio.create_subprocess_exec(
        *(sys.executable, health.__file__, str(at.hostname), str(at.port), str(server.pids)),
        stdout=PIPE,
    )

    async def read() -> None:
        assert asking.stdout is not None
        async for line in asking.stdout:
            began, took, waited = map(float, line.split())
            # What may run for a fifth of the time loses five seconds by each that it waits.
            lost = min(took, waited / traffic.share)
            ledger.health(traffic.phase, began, took if took >= 0 else None, lost)

    reading = asyncio.create_task(read())
    try:
        yield
    finally:
        send(asking.pid, signal.SIGTERM)
        await asking.wait()
        await reading


def _now() -> float:
    return asyncio.get_running_loop().time()
