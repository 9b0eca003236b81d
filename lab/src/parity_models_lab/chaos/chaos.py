"""A chaos run: a real server under load, a course of faults, and every query accounted for."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

from parity_models.errors import ServingError
from parity_models_lab.chaos.clients import HttpClients, RudeClients
from parity_models_lab.chaos.events import FLIPS, LIES, PHASE, Events, Phase, draw_course
from parity_models_lab.chaos.known_model import (
    flipped,
    other_weights,
    write_known_model,
    write_other_bundle,
)
from parity_models_lab.chaos.ledger import Ledger
from parity_models_lab.chaos.server import (
    DESCRIPTORS,
    Engine,
    TestedServer,
    instances_up,
    metrics,
    running,
)
from parity_models_lab.chaos.traffic import Traffic, answers_at_once, offered, probe
from parity_models_lab.processes import resident
from parity_models_lab.results import Row

DEADLINE = 2.0
"""Seconds that the server gives a query."""
SERVICE = 0.01
"""Median seconds that an instance takes for a unit."""
MAX_BATCH = 2
RECOVERY = 60.0
"""Seconds within which all instances must be up again after an event."""
AT_ONCE = 1.0
"""Seconds within which an idle server must answer, on a machine that is busy."""
QUICK = ("kill", "absurd", "nonsense", "timeouts", "disconnects")
"""The events of a quick run, none of which takes long to recover from."""
QUICK_PHASE = (1.0, 1.5)
QUARANTINED = 'parm_instances_recycled_total{reason="quarantined"}'


@dataclass(frozen=True)
class Chaos:
    """A run's books: a row for each event, and failures, each with the seconds since it began.

    `memory` is the growth of all processes' resident memory, in MiB.
    """

    rows: list[Row]
    queries: int
    failures: list[str]
    failed: int
    memory: float


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
) -> Chaos:
    """Run a course of events against a server of its own.

    Args:
        engine: What runs the server's instances.
        minutes: About how long.
        seed: Fixes the course, the load and the model.
        rate: Requests a second, of 2.8 queries on average.
        folder: For the server's files.
        events: Only these; all, if there are none.
        quick: Run for seconds, with events that a server recovers from at once.
        tell: Progress callback.

    Raises:
        UserError: There is no such event.
        ServingError: The server does not start.

    """
    if quick:
        events, minutes = events or QUICK, min(minutes, 0.2)
    course = draw_course(seed, minutes * 60, events, QUICK_PHASE if quick else PHASE)
    model = write_known_model(folder, seed)
    rng = Random(f"{seed}/events")
    lies = {f"flip-{each}": flipped(model, rng) for each in range(FLIPS)}
    server = TestedServer(
        model,
        engine,
        folder,
        deadline=DEADLINE,
        service=SERVICE,
        options=("--max-batch", str(MAX_BATCH)),
        lies=lies | {"liar": other_weights(seed)},
        descriptors=DESCRIPTORS,
    )
    ledger = Ledger()
    async with running(server) as (http, grpc):
        began, memory = _now(), _memory(server)
        traffic = Traffic(model, http, grpc, ledger, rate=rate, seed=seed, deadline=DEADLINE)
        rude, other = RudeClients(server.url, model), write_other_bundle(folder, seed)
        happening = Events(server, traffic, rude, other, rng)
        await _Course(server, http, ledger, traffic, happening, tell).run(course, minutes * 60)
        found = await metrics(http)
        for name, value in found.items():
            if name.startswith("parm_repairs_total") and value:
                ledger.fail(_now(), "", f"{name} is {value:g}")
        grown = (_memory(server) - memory) / 2**20
    if http.surplus:
        ledger.fail(_now(), "", f"{http.surplus} answers that nobody had asked for")
    if ledger.ended != ledger.sent_queries:
        what = f"{ledger.ended} of {ledger.sent_queries} queries are accounted for"
        ledger.fail(_now(), "", what)
    failures = [
        f"{one.at - began:.1f} s, {one.event or 'any'}: {one.what}" for one in ledger.failures
    ]
    return Chaos(list(ledger.rows()), ledger.sent_queries, failures, ledger.failed, grown)


class _Course:
    def __init__(
        self,
        server: TestedServer,
        http: HttpClients,
        ledger: Ledger,
        traffic: Traffic,
        events: Events,
        tell: Callable[[str], None],
    ) -> None:
        self._server = server
        self._http = http
        self._ledger = ledger
        self._traffic = traffic
        self._events = events
        self._tell = tell

    async def run(self, course: Sequence[Phase], seconds: float) -> None:
        """Run the phases, for about so long. Raises ServingError for a server whose metrics do not
        say how many instances are up."""
        end = _now() + seconds
        self._traffic.phase = "calm"
        self._all = instances_up(await metrics(self._http))
        if not self._all:
            raise ServingError("the server does not say how many instances are up; see its log")
        for number, phase in enumerate(course, 1):
            if _now() > end:
                break
            failed = self._ledger.failed
            await self._run_phase(phase)
            if not self._server.running:
                self._ledger.fail(_now(), phase.name, "the server's process has ended")
                break
            bad = self._ledger.failed - failed
            page = self._ledger.page(phase.name)
            self._tell(
                f"{number}, {' + '.join(phase.events)}: full strength after "
                f"{page.full_strength[-1]:.1f} s" + (f"; {bad} FAILURES" if bad else "")
            )

    async def _run_phase(self, phase: Phase) -> None:
        self._traffic.phase = phase.name
        quarantined = await self._quarantined()
        self._ledger.begin_quiet()
        async with offered(self._traffic):
            async with AsyncExitStack() as events:
                for event in phase.events:
                    await events.enter_async_context(self._events.during(event, phase.seconds))
                await asyncio.sleep(phase.seconds)
            await self._recover(phase)
        await self._ask_idle_server(phase)
        if LIES.isdisjoint(phase.events) and await self._quarantined() > quarantined:
            self._ledger.fail(_now(), phase.name, "an honest instance was quarantined")

    async def _quarantined(self) -> float:
        return (await metrics(self._http)).get(QUARANTINED, 0.0)

    async def _recover(self, phase: Phase) -> None:
        """Wait until all instances are up and three queries in turn are answered."""
        began = _now()
        good = 0
        while good < 3 and self._server.running:
            up = instances_up(await metrics(self._http))
            answered = up >= self._all and await self._try() is not None
            good = good + 1 if answered else 0
            if _now() - began > RECOVERY:
                what = f"{up} of {self._all} instances are up"
                self._ledger.fail(_now(), phase.name, f"not at full strength again: {what}")
                break
            await asyncio.sleep(0.05)
        self._ledger.page(phase.name).full_strength.append(_now() - began)

    async def _ask_idle_server(self, phase: Phase) -> None:
        took = await self._try()
        if took is None:
            self._ledger.fail(_now(), phase.name, "an idle server did not answer the next request")
        elif took > AT_ONCE:
            what = f"an idle server took {took:.1f} s to answer the next request"
            self._ledger.fail(_now(), phase.name, what)

    async def _try(self) -> float | None:
        return await answers_at_once(self._traffic, self._ledger, probe(self._server.model))


def _memory(server: TestedServer) -> int:
    return sum(map(resident, server.processes()))


def _now() -> float:
    return asyncio.get_running_loop().time()
