"""parm-lab liars: how soon an instance that answers wrongly is found, and whether honest ones are
ever taken for one."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec

from parity_models.codes import Code, CodeSpec
from parity_models.faults import FaultPlan, LogNormal, Slowdowns, Uniform
from parity_models.scheduling import DEPLOYED, RecycleReason, SchedulerConfig
from parity_models.scheduling.policies import Adaptive, StandIns
from parity_models.simulation import Simulation, simulate
from parity_models.simulation.arrivals import poisson_arrivals
from parity_models_lab.reliability.chaos_result import Claim
from parity_models_lab.reliability.http_client import HttpClients
from parity_models_lab.reliability.known_model import flipped, other_weights, write_known_model
from parity_models_lab.reliability.ledger import Ending, Ledger
from parity_models_lab.reliability.requests import Mix
from parity_models_lab.reliability.running import Running, offered, running
from parity_models_lab.reliability.servers import (
    INSTANCES,
    SERVERS,
    Engine,
    TestedServer,
    instances_up,
    is_ready,
    metrics,
)

SERVICE = 0.01
"""Median seconds that an instance takes for a unit."""
LOAD = 0.6
"""The load, as a share of what the instances can do."""
CALM = 3.0
"""Seconds before each lie in which the policy learns how long units take."""
WITHIN = 500
"""Queries of its that a liar may answer until it is quarantined."""
PATIENCE = 3 * WITHIN * INSTANCES
"""Queries of all instances after which it counts as not found."""
RECOVERY = 30.0
"""Seconds that the liar has to be up again, honest, before the next lie."""
FLIPS = 5
QUARANTINED = 'parm_instances_recycled_total{reason="quarantined"}'
VERIFY_EVERY = 100
"""Queries after which an instance of a server answers a golden query."""


class Lie(msgspec.Struct, frozen=True):
    """One lie. `answers`: rows that clients were answered until the liar was quarantined; `wrong`:
    how many of these were wrong; None: it was not found."""

    lie: str
    answers: int | None
    wrong: int

    @property
    def of_the_liar(self) -> int | None:
        """About how many queries it answered: its share of all, and no less than were wrong."""
        return None if self.answers is None else max(self.wrong, self.answers // INSTANCES)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What must hold, computed."""
        found = self.of_the_liar
        return (
            Claim(
                f"quarantined within {WITHIN} of its queries",
                "not found" if found is None else f"{found}",
                found is not None and found <= WITHIN,
            ),
        )


class Honest(msgspec.Struct, frozen=True):
    """A long simulated load without liars, slow instances included: who was recycled, by reason."""

    queries: int
    recycled: dict[str, int]

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What must hold, computed."""
        found = self.recycled.get(RecycleReason.QUARANTINED, 0)
        what = f"no honest instance is quarantined in {self.queries:,} queries"
        return (Claim(what, f"{found}", found == 0),)


class LiarsResult(msgspec.Struct, frozen=True):
    """All lies, and the honest load."""

    engine: str
    lies: tuple[Lie, ...]
    honest: Honest
    date: str
    command: str = ""

    @property
    def claims(self) -> tuple[Claim, ...]:
        """All that must hold."""
        lies = tuple(claim for lie in self.lies for claim in lie.claims)
        return (*lies, *self.honest.claims)

    @property
    def met(self) -> bool:
        return all(claim.met for claim in self.claims)


async def run_liars(
    engine: Engine,
    *,
    folder: Path,
    seed: int,
    honest_queries: int,
    flips: int = FLIPS,
    say: Callable[[str], None],
) -> LiarsResult:
    """Let the last instance lie in one way after the other, and simulate an honest load.

    `flips` are the lies by a flipped bit. Raises ServingError for a server that does not start.
    """
    model = write_known_model(folder, seed)
    rng = Random(f"{seed}/liars")
    lies = {"another model's weights": other_weights(seed)}
    lies |= {f"flipped exponent bit {each}": flipped(model, rng) for each in range(1, flips + 1)}
    server = SERVERS[engine](model, folder, deadline=10.0, service=SERVICE, lies=lies)
    told = []
    async with running(server) as run:
        watch = _Watch(server)
        await watch.begin()
        for name in lies:
            told.append(await _tell(run, watch, name, seed))
            found = told[-1].claims[0].found
            say(f"{name}: {found} of its queries, {told[-1].wrong} wrong answers")
    honest = simulate_honest(honest_queries, seed)
    say(f"{honest.claims[0].claim}: {honest.claims[0].found}")
    date = datetime.now(UTC).isoformat(timespec="minutes")
    return LiarsResult(engine, tuple(told), honest, date)


class _Watch:
    """Who has been quarantined, by whichever server noticed: an upstream may be the first to notice
    that its own worker lies."""

    def __init__(self, server: TestedServer) -> None:
        self._servers = [HttpClients(url) for url in server.urls]

    async def begin(self) -> None:
        """All instances are up now."""
        self._all = await self._up()

    async def quarantined(self) -> float:
        """How often an instance has been quarantined so far."""
        return sum([(await metrics(http)).get(QUARANTINED, 0.0) for http in self._servers])

    async def all_are_well(self) -> None:
        """Wait until all instances are up again, and all servers are ready; in vain, after a
        while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RECOVERY):
                while await self._up() < self._all or not await self._ready():
                    await asyncio.sleep(0.1)

    async def _up(self) -> int:
        return sum([instances_up(await metrics(http)) for http in self._servers])

    async def _ready(self) -> bool:
        return all([await is_ready(http) for http in self._servers])


async def _tell(run: Running, watch: _Watch, name: str, seed: int) -> Lie:
    """Let the lie be told until it is found, and then wait for all instances to be up again."""
    ledger = Ledger()
    traffic = run.traffic(ledger, rate=LOAD * INSTANCES / SERVICE, seed=seed)
    traffic.mix, traffic.phase = Mix(rows=(1,), grpc=0.0), "calm"
    async with offered(traffic):
        await asyncio.sleep(CALM)
        before = await watch.quarantined()
        traffic.phase = "lie"
        traffic.lies_begin()
        run.server.begin_lie(name)
        page = ledger.page("lie")
        found = False
        while not found and page.count(Ending.RIGHT, Ending.WRONG) < PATIENCE:
            await asyncio.sleep(0.1)
            found = await watch.quarantined() > before
        answers, wrong = page.count(Ending.RIGHT, Ending.WRONG), page.count(Ending.WRONG)
        run.server.end_lies()
    await watch.all_are_well()
    return Lie(name, answers if found else None, wrong)


def simulate_honest(queries: int, seed: int) -> Honest:
    """So many queries for the scheduler that serves, at 60 % load, and instances that are slow now
    and then for seconds, up to ten times slower."""
    slow = Slowdowns(20.0, 3.0, Uniform(0.02, 0.1))
    rate = LOAD * INSTANCES / SERVICE
    result = simulate(
        Simulation(
            arrivals=poisson_arrivals(rate, queries, seed),
            instances=INSTANCES - 1,
            parity_instances=1,
            service={DEPLOYED: LogNormal(SERVICE, 0.2)},
            faults=FaultPlan(seed=seed, slowdowns=slow),
            config=SchedulerConfig(verify_every=VERIFY_EVERY),
            seed=seed,
        ),
        Adaptive(StandIns(Code(CodeSpec("sum", "subtraction", 2), (1,), (1,)))),
    )
    return Honest(queries, {str(reason): count for reason, count in result.recycled.items()})
