"""parm lab chaos: a real server under load, a course of faults, and every query accounted for."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from parity_models.lab.reliability.chaos_result import ChaosResult, claims_of, rows_of
from parity_models.lab.reliability.course import PHASE, Phase, draw_course
from parity_models.lab.reliability.events import FLIPS, LIES, Events
from parity_models.lab.reliability.grpc_client import GrpcClients
from parity_models.lab.reliability.http_client import HttpClients
from parity_models.lab.reliability.known_model import (
    KnownModel,
    flipped,
    other_weights,
    write_known_model,
    write_other_bundle,
)
from parity_models.lab.reliability.ledger import Failure, Ledger
from parity_models.lab.reliability.rude import RudeClients
from parity_models.lab.reliability.servers import (
    DESCRIPTORS,
    Engine,
    TestedServer,
    instances_up,
    metrics,
    server_on,
    total,
)
from parity_models.lab.reliability.traffic import Traffic, answers_at_once, probe

DEADLINE = 2.0
"""Seconds that the server gives a query."""
SERVICE = 0.01
"""Median seconds that an instance takes for a unit."""
MAX_BATCH = 2
_RECOVERY = {Engine.LOCAL: 30.0, Engine.REMOTE: 30.0, Engine.RAY: 60.0}
"""Seconds within which all instances must be up again after an event."""
AT_ONCE = 1.0
"""Seconds within which an idle server must answer, on a machine that is busy."""
QUICK = ("kill", "absurd", "nonsense", "timeouts", "disconnects")
"""The events of a quick run, none of which takes long to recover from."""
QUICK_PHASE = (1.0, 1.5)


async def run_chaos(
    engine: Engine,
    *,
    minutes: float,
    seed: int,
    rate: float,
    folder: Path,
    events: Sequence[str] = (),
    quick: bool = False,
    say: Callable[[str], None],
) -> ChaosResult:
    """Run a course of `events` (all, if none are given) for about `minutes`; `rate` is of requests
    a second. Files go to `folder`; `say` is told of each phase.

    Raises UserError for events that there are not, and ServingError for a server that does not
    start.
    """
    if quick:
        events, minutes = events or QUICK, min(minutes, 0.2)
    course = draw_course(seed, minutes * 60, events, QUICK_PHASE if quick else PHASE)
    folder.mkdir(parents=True, exist_ok=True)
    model = write_known_model(folder, seed)
    rng = Random(f"{seed}/events")
    lies = {f"flip-{each}": flipped(model, rng) for each in range(FLIPS)}
    options = ("--max-batch", str(MAX_BATCH))
    server = server_on(
        engine,
        model,
        folder,
        deadline=DEADLINE,
        service=SERVICE,
        options=options,
        lies=lies | {"liar": other_weights(seed)},
        descriptors=DESCRIPTORS,
    )
    began, cpu = time.monotonic(), time.process_time()
    await server.start()
    try:
        other = write_other_bundle(folder, seed)
        chaos = _Chaos(engine, server, model, other, seed, rate, rng, say)
        repairs = await chaos.run(course, minutes * 60)
    finally:
        server.end_lies()
        await server.stop()
    ledger = chaos.ledger
    return ChaosResult(
        engine,
        seed,
        minutes,
        rate,
        ledger.sent_queries,
        rows_of(ledger),
        claims_of(ledger, chaos.http.surplus, repairs),
        tuple(_spell(failure, began) for failure in ledger.failures),
        (time.process_time() - cpu) / (time.monotonic() - began),
        datetime.now(UTC).isoformat(timespec="minutes"),
    )


def _spell(failure: Failure, began: float) -> str:
    return f"{failure.at - began:.1f} s, {failure.event or 'any'}: {failure.what}"


class _Chaos:
    def __init__(
        self,
        engine: Engine,
        server: TestedServer,
        model: KnownModel,
        other: Path,
        seed: int,
        rate: float,
        rng: Random,
        say: Callable[[str], None],
    ) -> None:
        self.ledger = Ledger()
        self.http = HttpClients(server.url)
        self._engine = engine
        self._server = server
        self._model = model
        self._say = say
        address = server.front.grpc_address
        self._grpc = GrpcClients(address) if address else None
        self._traffic = Traffic(
            model, self.http, self._grpc, self.ledger, rate=rate, seed=seed, deadline=DEADLINE
        )
        rude = RudeClients(server.url, model)
        self._events = Events(server, self._traffic, rude, other, rng)

    async def run(self, course: Sequence[Phase], seconds: float) -> float | None:
        """Live through the course, for about so long; returns the server's count of repairs, if it
        has one."""
        end = _now() + seconds
        self._traffic.phase = "calm"
        self._all = instances_up(await metrics(self.http))
        for number, phase in enumerate(course, 1):
            if _now() > end:
                break
            failed = self.ledger.failed
            await self._live_through(phase)
            if not self._server.front.running:
                self.ledger.fail(_now(), phase.name, "the server's process has ended")
                break
            bad = self.ledger.failed - failed
            page = self.ledger.page(phase.name)
            self._say(
                f"{number}, {' + '.join(phase.events)}: full strength after "
                f"{page.full_strength[-1]:.1f} s" + (f"; {bad} FAILURES" if bad else "")
            )
        found = await metrics(self.http)
        known = any(name.startswith("parm_repairs_total") for name in found)
        self.http.close()
        if self._grpc is not None:
            await self._grpc.close()
        return total(found, "parm_repairs_total") if known else None

    async def _live_through(self, phase: Phase) -> None:
        self._traffic.phase = phase.name
        over = asyncio.Event()
        quarantined = await self._quarantined()
        self.ledger.begin_quiet()
        load = asyncio.create_task(self._traffic.run(over))
        try:
            async with AsyncExitStack() as events:
                for event in phase.events:
                    await events.enter_async_context(self._events.during(event, phase.seconds))
                await asyncio.sleep(phase.seconds)
            await self._recover(phase)
        finally:
            over.set()
            await load
        await self._traffic.settle()
        await self._ask_idle_server(phase)
        if LIES.isdisjoint(phase.events) and await self._quarantined() > quarantined:
            self.ledger.fail(_now(), phase.name, "an honest instance was quarantined")

    async def _quarantined(self) -> float:
        found = await metrics(self.http)
        return found.get('parm_instances_recycled_total{reason="quarantined"}', 0.0)

    async def _recover(self, phase: Phase) -> None:
        """Wait until all instances are up and three queries in turn are answered."""
        began = _now()
        good = 0
        while good < 3 and self._server.front.running:
            up = instances_up(await metrics(self.http))
            answered = up >= self._all and await self._try()
            good = good + 1 if answered else 0
            if _now() - began > _RECOVERY[self._engine]:
                what = f"{up} of {self._all} instances are up"
                self.ledger.fail(_now(), phase.name, f"not at full strength again: {what}")
                break
            await asyncio.sleep(0.05)
        self.ledger.page(phase.name).full_strength.append(_now() - began)

    async def _try(self) -> bool:
        took = await answers_at_once(self._traffic, self.ledger, probe(self._model))
        return took is not None

    async def _ask_idle_server(self, phase: Phase) -> None:
        took = await answers_at_once(self._traffic, self.ledger, probe(self._model))
        if took is None:
            self.ledger.fail(_now(), phase.name, "an idle server did not answer the next request")
        elif took > AT_ONCE:
            what = f"an idle server took {took:.1f} s to answer the next request"
            self.ledger.fail(_now(), phase.name, what)


def _now() -> float:
    return asyncio.get_running_loop().time()
