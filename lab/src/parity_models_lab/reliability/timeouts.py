"""parm-lab timeouts: clients whose timeouts lie near the service time; then, is all well?"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.scheduling.policies import POLICIES as KNOWN
from parity_models_lab.reliability.chaos_result import Claim
from parity_models_lab.reliability.events import near
from parity_models_lab.reliability.http_client import BrokenError, HttpClients
from parity_models_lab.reliability.known_model import write_known_model
from parity_models_lab.reliability.ledger import Kind, error_class
from parity_models_lab.reliability.requests import Drawn, http_request
from parity_models_lab.reliability.running import running
from parity_models_lab.reliability.servers import LocalServer
from parity_models_lab.reliability.traffic import error_text

CLIENTS = 8
"""Closed-loop clients: more than there are instances, so that queries wait, too."""
SERVICE = 0.01
"""Median seconds that an instance takes for a unit."""
AT_ONCE = 0.5
"""Seconds in which an idle server answers at once, on a machine that is busy."""
IDLE_QUERIES = 20
"""Queries that are asked of the idle server, one after the other."""
POLICIES = tuple(policy.name for policy in KNOWN if not policy.needs_backup)
"""All but the one that needs a backup, which the bundle of known answers does not have."""


class PolicyTimeouts(msgspec.Struct, frozen=True):
    """One policy: how requests ended, by status and reason, and the idle server's slowest answer
    in seconds afterwards; None: it did not answer each of them."""

    policy: str
    requests: int
    endings: dict[str, int]
    idle: float | None
    repairs: float

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What must hold, computed."""
        failed = sum(count for what, count in self.endings.items() if what.startswith("500"))
        slowest = "not answered" if self.idle is None else f"{self.idle * 1e3:.0f} ms"
        at_once = self.idle is not None and self.idle <= AT_ONCE
        return (
            Claim("an idle server answers the next requests at once", slowest, at_once),
            Claim("no 500", f"{failed:,}", failed == 0),
            Claim("parm_repairs_total stays 0", f"{self.repairs:g}", self.repairs == 0),
        )


class TimeoutsResult(msgspec.Struct, frozen=True):
    """All policies, for `seconds` each."""

    seconds: float
    policies: tuple[PolicyTimeouts, ...]
    date: str
    command: str = ""

    @property
    def met(self) -> bool:
        return all(claim.met for policy in self.policies for claim in policy.claims)


async def run_timeouts(
    *,
    folder: Path,
    seed: int,
    seconds: float,
    say: Callable[[PolicyTimeouts], None],
) -> TimeoutsResult:
    """Ask servers on worker processes, one for each policy; `say` is told of each.

    Raises ServingError for a server that does not start.
    """
    model = write_known_model(folder, seed)
    found = []
    for policy in POLICIES:
        options = ("--policy", policy)
        server = LocalServer(model, folder, deadline=10.0, service=SERVICE, options=options)
        async with running(server) as run:
            endings = await _press(run.http, model.rows, seed, seconds)
            idle = await _slowest_of_idle(run.http, model.rows)
            repairs = await run.repairs() or 0.0
        found.append(PolicyTimeouts(policy, endings.total(), dict(endings), idle, repairs))
        say(found[-1])
    return TimeoutsResult(seconds, tuple(found), datetime.now(UTC).isoformat(timespec="minutes"))


async def _press(
    http: HttpClients, rows: NDArray[np.float32], seed: int, seconds: float
) -> Counter[str]:
    endings: Counter[str] = Counter()
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        rng = Random(f"{seed}/timeouts/{number}")
        while time.monotonic() < end:
            drawn = Drawn(Kind.HONEST, rows[:1], timeout=rng.uniform(*near(SERVICE)))
            try:
                answer = await http.ask(http_request(drawn, number, http.authority))
            except BrokenError as error:
                endings[f"broken: {error}"] += 1
                continue
            right = answer.status == 200
            what = "200" if right else error_class(answer.status, error_text(answer))
            endings[what] += 1

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return endings


async def _slowest_of_idle(http: HttpClients, rows: NDArray[np.float32]) -> float | None:
    """Seconds that the slowest of some queries takes, one after the other, each with 5 s."""
    slowest = 0.0
    for number in range(IDLE_QUERIES):
        began = time.monotonic()
        request = http_request(Drawn(Kind.HONEST, rows[:1]), number, http.authority)
        status = 0
        with suppress(BrokenError, TimeoutError):
            async with asyncio.timeout(5.0):
                status = (await http.ask(request)).status
        if status != 200:
            return None
        slowest = max(slowest, time.monotonic() - began)
    return slowest
