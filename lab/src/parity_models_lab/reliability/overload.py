"""parm-lab overload: goodput, waits and memory of a server asked for more than it can do."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec
import numpy as np

from parity_models.faults import LogNormal
from parity_models_lab.processes import resident
from parity_models_lab.reliability.best_admission import best_goodput
from parity_models_lab.reliability.chaos_result import Claim
from parity_models_lab.reliability.http_client import BrokenError, HttpAnswer, HttpClients
from parity_models_lab.reliability.known_model import write_known_model
from parity_models_lab.reliability.ledger import Kind, error_class
from parity_models_lab.reliability.requests import Drawn, http_request
from parity_models_lab.reliability.running import running
from parity_models_lab.reliability.servers import INSTANCES, SERVERS, SIGMA, Engine, TestedServer
from parity_models_lab.reliability.traffic import error_text

FACTORS = (1.2, 2.0, 3.0, 5.0)
DEADLINES = (0.1, 1.0, 10.0)
SERVICE = 0.02
"""Median seconds that an instance takes for a unit."""
SCARCE = 5
"""Clients that give up within so many service times leave little room for a queue."""
WARM_UP = 1.0
"""Seconds at the start of each load; what ends in them is not counted."""
GIVE_UP = 1.0
"""Seconds after which clients give up who do, or half of the deadline if that is sooner. Of clients
that give up after a third of 0.1 s, no admission could answer the share of capacity that is wanted:
82 % at 1.2 times capacity, by `best_goodput`, of which the server had 80 %."""
GOOD, GOOD_NEAR = 0.90, 0.85
"""Share of capacity that must be answered in time; the latter at NEAR times capacity."""
NEAR = 1.2
BACK = 1.0
"""Seconds after which a server must be back to normal."""
PATIENCE = 15.0
"""Seconds for which a server is looked at after a load."""
MAX_SEND_DELAY = 0.05
"""Seconds that clients may be late in sending, or a tenth of the deadline if that is sooner."""
MEMORY = 200 * 2**20
"""Bytes by which all processes may grow during one load."""


class Overload(msgspec.Struct, frozen=True):
    """One load. Times in seconds, sizes in bytes, `goodput` as a share of capacity.

    `goodput`: what was answered in time while the load lasted, but for its first second.
    `gives_up`: after so many seconds clients hang up; answers that come later are of no use to
    them. `p99`: of the queries that were answered. `back`: from the load's end until a query is
    sent that is answered within the deadline; `fast`: within ten service times, which takes as long
    as the queue does to empty. `send_delay_p99`: how much later than due queries were sent: where
    the machine is too busy for the clients, nothing is learned about the server. `best`: the
    goodput that no admission could exceed, simulated, where clients leave little room for a queue.
    """

    factor: float
    deadline: float
    gives_up: float | None
    offered: int
    goodput: float
    p99: float | None
    refusals: dict[str, int]
    cut: int
    broken: int
    without_retry_after: int
    memory_growth: int
    back: float | None
    fast: float | None
    send_delay_p99: float
    best: float | None = None
    way: float = 0.0
    """What a request that no instance has to do with took there and back, on the idle server."""

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What must hold, computed."""
        least = GOOD_NEAR if self.factor <= NEAR else GOOD
        late = self.p99 is None or self.p99 > self.deadline
        back = f"not within {PATIENCE:g} s" if self.back is None else f"{self.back:.2f} s"
        return (
            Claim(f"at least {least:.0%} of capacity", f"{self.goodput:.1%}",
                  self.goodput >= least),
            Claim("p99 of answers within the deadline",
                  "no answers" if self.p99 is None else f"{self.p99:.3f} s", not late),
            Claim("queries were sent on time", f"p99 {self.send_delay_p99 * 1e3:.0f} ms late",
                  self.send_delay_p99 <= min(MAX_SEND_DELAY, self.deadline / 10)),
            Claim("memory bounded", f"{self.memory_growth / 2**20:+.0f} MiB",
                  self.memory_growth <= MEMORY),
            Claim(f"back to normal within {BACK:g} s", back,
                  self.back is not None and self.back <= BACK),
        )  # fmt: skip


class OverloadResult(msgspec.Struct, frozen=True):
    """All loads; `capacity` in queries a second, as measured."""

    engine: str
    capacity: float
    seconds: float
    loads: tuple[Overload, ...]
    date: str
    command: str = ""

    @property
    def met(self) -> bool:
        return all(claim.met for load in self.loads for claim in load.claims)


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


async def run_overload(
    engine: Engine,
    *,
    folder: Path,
    seed: int,
    seconds: float,
    factors: Sequence[float] = FACTORS,
    deadlines: Sequence[float] = DEADLINES,
    say: Callable[[Overload], None],
) -> OverloadResult:
    """Offer each load for `seconds` to a server of emulated service times; `say` is told of each.

    Raises ServingError for a server that does not start.
    """
    model = write_known_model(folder, seed)
    loads = []
    capacities = []
    for deadline in deadlines:
        server = SERVERS[engine](model, folder, deadline=deadline, service=SERVICE)
        async with running(server) as run:
            bench = _Bench(server, run.http, seed)
            await bench.measure_way()
            # Long deadlines take longer to fill the queue with what can be in time.
            lasting = max(seconds, 1.5 * deadline)
            capacities.append(await bench.capacity(seconds))
            for factor in factors:
                for gives_up in (None, min(GIVE_UP, deadline / 2)):
                    load = await bench.offer(factor, capacities[-1], gives_up, lasting)
                    loads.append(load)
                    say(load)
    return OverloadResult(
        engine,
        float(np.mean(capacities)),
        seconds,
        tuple(loads),
        datetime.now(UTC).isoformat(timespec="minutes"),
    )


class _Bench:
    def __init__(self, server: TestedServer, http: HttpClients, seed: int) -> None:
        self._server = server
        self._http = http
        self._random = Random(f"{seed}/overload/{server.deadline}")
        self._request = http_request(
            Drawn(Kind.HONEST, server.model.rows[:1]), 0, self._http.authority
        )
        self._way = 0.0

    async def measure_way(self) -> None:
        """Learn what is lost to clients on the way there and back."""
        took = []
        for _ in range(50):
            begin = _now()
            await self._http.get("/v2/health/live")
            took.append(_now() - begin)
        self._way = float(np.median(took))

    async def capacity(self, seconds: float) -> float:
        """Queries a second that closed-loop clients get answered, twice as many as instances."""
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
    ) -> Overload:
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
        return Overload(
            factor,
            self._server.deadline,
            gives_up,
            offered,
            counts.good / (capacity * seconds),
            float(np.quantile(counts.latencies, 0.99)) if counts.latencies else None,
            dict(counts.refusals),
            counts.cut,
            counts.broken,
            counts.without_retry_after,
            most - before,
            None if back is None else back - over,
            None if fast is None else fast - over,
            float(np.quantile(delays, 0.99)),
            self._best(factor, capacity, gives_up),
            self._way,
        )

    def _best(self, factor: float, capacity: float, gives_up: float | None) -> float | None:
        if gives_up is None or gives_up > SCARCE * SERVICE:
            return None
        service = LogNormal(SERVICE, SIGMA)
        return best_goodput(factor, gives_up - self._way, capacity, INSTANCES, service)

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
        """When the first query is sent that is answered in time, and the first that is answered
        within ten service times; None: not within PATIENCE."""
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
