"""parm-lab chaos: a real server under load, a course of faults, and every query accounted for."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from parity_models.errors import ServingError
from parity_models_lab.reliability.chaos_result import ChaosResult, claims_of, rows_of
from parity_models_lab.reliability.course import PHASE, Phase, draw_course
from parity_models_lab.reliability.events import FLIPS, LIES, Events
from parity_models_lab.reliability.known_model import (
    flipped,
    other_weights,
    write_known_model,
    write_other_bundle,
)
from parity_models_lab.reliability.ledger import Failure, Ledger
from parity_models_lab.reliability.rude import RudeClients
from parity_models_lab.reliability.running import Running, offered, running
from parity_models_lab.reliability.servers import (
    DESCRIPTORS,
    SERVERS,
    Engine,
    instances_up,
    metrics,
)
from parity_models_lab.reliability.traffic import Traffic, answers_at_once, probe

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
    model = write_known_model(folder, seed)
    rng = Random(f"{seed}/events")
    lies = {f"flip-{each}": flipped(model, rng) for each in range(FLIPS)}
    options = ("--max-batch", str(MAX_BATCH))
    server = SERVERS[engine](
        model,
        folder,
        deadline=DEADLINE,
        service=SERVICE,
        options=options,
        lies=lies | {"liar": other_weights(seed)},
        descriptors=DESCRIPTORS,
    )
    began, cpu = time.monotonic(), time.process_time()
    ledger = Ledger()
    async with running(server) as run:
        traffic = run.traffic(ledger, rate=rate, seed=seed)
        rude, other = RudeClients(server.url, model), write_other_bundle(folder, seed)
        happening = Events(server, traffic, rude, other, rng)
        await _Chaos(engine, run, ledger, traffic, happening, say).live(course, minutes * 60)
        repairs = await run.repairs()
    return ChaosResult(
        engine,
        seed,
        minutes,
        rate,
        ledger.sent_queries,
        rows_of(ledger),
        tuple(_spell(failure, began) for failure in ledger.failures),
        (time.process_time() - cpu) / (time.monotonic() - began),
        claims=claims_of(ledger, run.http.surplus, repairs),
        date=datetime.now(UTC).isoformat(timespec="minutes"),
    )


def _spell(failure: Failure, began: float) -> str:
    return f"{failure.at - began:.1f} s, {failure.event or 'any'}: {failure.what}"


class _Chaos:
    def __init__(
        self,
        engine: Engine,
        run: Running,
        ledger: Ledger,
        traffic: Traffic,
        events: Events,
        say: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._http = run.http
        self._server = run.server
        self._ledger = ledger
        self._traffic = traffic
        self._events = events
        self._say = say

    async def live(self, course: Sequence[Phase], seconds: float) -> None:
        """Live through the course, for about so long. Raises ServingError for a server of which it
        cannot be said when all of its instances are up."""
        end = _now() + seconds
        self._traffic.phase = "calm"
        self._all = instances_up(await metrics(self._http))
        if not self._all:
            raise ServingError("the server does not say how many instances are up; see its log")
        for number, phase in enumerate(course, 1):
            if _now() > end:
                break
            failed = self._ledger.failed
            await self._live_through(phase)
            if not self._server.front.running:
                self._ledger.fail(_now(), phase.name, "the server's process has ended")
                break
            bad = self._ledger.failed - failed
            page = self._ledger.page(phase.name)
            self._say(
                f"{number}, {' + '.join(phase.events)}: full strength after "
                f"{page.full_strength[-1]:.1f} s" + (f"; {bad} FAILURES" if bad else "")
            )

    async def _live_through(self, phase: Phase) -> None:
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
        found = await metrics(self._http)
        return found.get('parm_instances_recycled_total{reason="quarantined"}', 0.0)

    async def _recover(self, phase: Phase) -> None:
        """Wait until all instances are up and three queries in turn are answered."""
        began = _now()
        good = 0
        while good < 3 and self._server.front.running:
            up = instances_up(await metrics(self._http))
            answered = up >= self._all and await self._try()
            good = good + 1 if answered else 0
            if _now() - began > _RECOVERY[self._engine]:
                what = f"{up} of {self._all} instances are up"
                self._ledger.fail(_now(), phase.name, f"not at full strength again: {what}")
                break
            await asyncio.sleep(0.05)
        self._ledger.page(phase.name).full_strength.append(_now() - began)

    async def _try(self) -> bool:
        took = await answers_at_once(self._traffic, self._ledger, probe(self._server.model))
        return took is not None

    async def _ask_idle_server(self, phase: Phase) -> None:
        took = await answers_at_once(self._traffic, self._ledger, probe(self._server.model))
        if took is None:
            self._ledger.fail(_now(), phase.name, "an idle server did not answer the next request")
        elif took > AT_ONCE:
            what = f"an idle server took {took:.1f} s to answer the next request"
            self._ledger.fail(_now(), phase.name, what)


def _now() -> float:
    return asyncio.get_running_loop().time()
