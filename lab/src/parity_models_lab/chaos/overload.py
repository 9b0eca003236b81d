"""Overload: goodput, waits and memory of a server asked for more than it can do."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from parity_models_lab.chaos.clients import BrokenError, HttpAnswer, HttpClients
from parity_models_lab.chaos.known_model import write_known_model
from parity_models_lab.chaos.ledger import Kind, error_class
from parity_models_lab.chaos.requests import Drawn, http_request
from parity_models_lab.chaos.server import INSTANCES, Engine, TestedServer, running
from parity_models_lab.chaos.traffic import error_text
from parity_models_lab.processes import resident
from parity_models_lab.results import Row

FACTORS = (1.2, 2.0, 3.0, 5.0)
DEADLINES = (0.1, 1.0, 10.0)
SERVICE = 0.02
"""Median seconds that an instance takes for a unit."""
WARM_UP = 1.0
"""Seconds at the start of each load; what ends in them is not counted."""
GIVE_UP = 1.0
"""Seconds after which clients give up who do, or half of the deadline if that is sooner."""
PATIENCE = 15.0
"""Seconds for which a server is watched after a load."""


async def run_overload(
    engine: Engine,
    *,
    folder: Path,
    seed: int,
    seconds: float,
    factors: Sequence[float] = FACTORS,
    deadlines: Sequence[float] = DEADLINES,
) -> AsyncIterator[Row]:
    """Offer each load to a server of emulated service times; yield a row for each.

    `goodput` is the share of capacity that was answered in time while the load lasted. `p99` is of
    answered queries, in ms. `back` is how many seconds after the load's end a query is sent that is
    answered within the deadline, `fast` within ten service times. `send delay`, the p99 of how late
    clients sent, in ms: where it is long, the machine was too busy to learn anything.

    Raises:
        ServingError: The server does not start.

    """
    model = write_known_model(folder, seed)
    for deadline in deadlines:
        server = TestedServer(model, engine, folder, deadline=deadline, service=SERVICE)
        async with running(server) as (http, _):
            bench = _Bench(server, http, seed)
            capacity = await bench.capacity(seconds)
            # Long deadlines take longer to fill the queue with what can be in time.
            lasting = max(seconds, 1.5 * deadline)
            for factor in factors:
                for gives_up in (None, min(GIVE_UP, deadline / 2)):
                    yield await bench.offer(factor, capacity, gives_up, lasting)


@dataclass
class _Counts:
    """Of what ended after one time; `good`: before another, when the load is over."""

    since: float
    until: float
    good: int = 0
    cut: int = 0
    broken: int = 0
    latencies: list[float] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    without_retry_after: int = 0


class _Bench:
    def __init__(self, server: TestedServer, http: HttpClients, seed: int) -> None:
        self._server = server
        self._http = http
        self._random = Random(f"{seed}/overload/{server.deadline}")
        drawn = Drawn(Kind.HONEST, server.model.rows[:1])
        self._request = http_request(drawn, 0, self._http.authority)

    async def capacity(self, seconds: float) -> float:
        """Return the queries a second that twice as many closed-loop clients as instances get."""
        answered = 0
        end = _now() + seconds

        async def client() -> None:
            nonlocal answered
            while _now() < end:
                with suppress(BrokenError):
                    answer = await self._http.ask(self._request)
                    answered += answer.status == 200

        await asyncio.gather(*(client() for _ in range(2 * INSTANCES)))
        return answered / seconds

    async def offer(
        self, factor: float, capacity: float, gives_up: float | None, seconds: float
    ) -> Row:
        useful = self._server.deadline if gives_up is None else gives_up
        tasks: set[asyncio.Task[None]] = set()
        before = most = self._memory()
        offered = 0
        delays = []
        due = _now()
        counts = _Counts(due + WARM_UP, due + WARM_UP + seconds)
        while due < counts.until:
            due += self._random.expovariate(factor * capacity)
            if (wait := due - _now()) > 0:
                await asyncio.sleep(wait)
            offered += due >= counts.since
            delays.append(_now() - due)
            task = asyncio.create_task(self._ask(due, gives_up, useful, counts))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if offered % 500 == 0:
                most = max(most, self._memory())
        over = _now()
        back, fast = await self._back_to_normal()
        if tasks:
            await asyncio.wait(list(tasks), timeout=self._server.deadline + 5)
        most = max(most, self._memory())
        p99 = np.quantile(counts.latencies, 0.99) * 1e3 if counts.latencies else None
        return {
            "times capacity": factor,
            "deadline": self._server.deadline,
            "gives up": gives_up,
            "capacity": capacity,
            "offered": offered,
            "goodput": counts.good / (capacity * seconds),
            "p99": None if p99 is None else float(p99),
            "refusals": dict(counts.refusals),
            "hung up": counts.cut,
            "broken": counts.broken,
            "no Retry-After": counts.without_retry_after,
            "memory MiB": (most - before) / 2**20,
            "back": None if back is None else back - over,
            "fast": None if fast is None else fast - over,
            "send delay": float(np.quantile(delays, 0.99)) * 1e3,
        }

    async def _ask(
        self, due: float, gives_up: float | None, useful: float, counts: _Counts
    ) -> None:
        cut = broken = False
        answer = None
        try:
            async with asyncio.timeout(gives_up):
                answer = await self._http.ask(self._request)
        except TimeoutError:
            cut = True
        except BrokenError:
            broken = True
        now = _now()
        if now < counts.since:
            return
        if answer is not None and answer.status == 200:
            counts.latencies.append(now - due)
            counts.good += now < counts.until and now - due <= useful
        elif due >= counts.since:  # of as many as are counted as offered
            counts.cut += cut
            counts.broken += broken
            if answer is not None:
                self._refused(answer, counts)

    def _refused(self, answer: HttpAnswer, counts: _Counts) -> None:
        counts.refusals[error_class(answer.status, error_text(answer))] += 1
        if answer.status == 503 and "retry-after" not in answer.headers:
            counts.without_retry_after += 1

    async def _back_to_normal(self) -> tuple[float | None, float | None]:
        """Return when the first query is sent that is answered in time, and the first that is
        answered within ten service times; None: not within PATIENCE."""
        deadline = self._server.deadline
        answered: list[tuple[float, float]] = []

        async def ask(sent: float) -> None:
            with suppress(BrokenError, TimeoutError):
                async with asyncio.timeout(deadline):
                    answer = await self._http.ask(self._request)
                if answer.status == 200:
                    answered.append((sent, _now() - sent))

        tasks = []
        end = _now() + PATIENCE
        while _now() < end and not any(took <= 10 * SERVICE for _, took in answered):
            tasks.append(asyncio.create_task(ask(_now())))
            await asyncio.sleep(0.05)
        await asyncio.gather(*tasks)
        back = [sent for sent, _ in answered]
        fast = [sent for sent, took in answered if took <= 10 * SERVICE]
        return min(back, default=None), min(fast, default=None)

    def _memory(self) -> int:
        return sum(map(resident, self._server.processes()))


def _now() -> float:
    return time.monotonic()
