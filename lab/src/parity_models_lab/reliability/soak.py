"""parm-lab soak: memory and descriptors of a server under steady load, for an hour."""

import asyncio
import csv
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from parity_models_lab.processes import descriptors, resident
from parity_models_lab.reliability.chaos_result import Claim, Judged, claims_of
from parity_models_lab.reliability.known_model import write_known_model
from parity_models_lab.reliability.ledger import Ledger
from parity_models_lab.reliability.requests import Mix
from parity_models_lab.reliability.running import Running, offered, running
from parity_models_lab.reliability.servers import INSTANCES, SERVERS, Engine

SERVICE = 0.02
"""Median seconds that an instance takes for a unit."""
DEADLINE = 10.0
EVERY = 5.0
"""Seconds between two looks."""
WARM_UP = 600.0
"""Seconds in which memory may grow; a sixth of a shorter soak."""
GROWTH = 0.01
"""Share by which memory may grow afterwards."""


class Sample(msgspec.Struct, frozen=True):
    """One look: seconds since the load began, bytes in use by all processes together, and by the
    one that clients talk to; open descriptors of all processes, without clients' connections."""

    at: float
    resident: int
    front: int
    descriptors: int
    processes: int


class SoakResult(Judged, frozen=True):
    """A soak; `samples` are in soak-ENGINE.csv, too."""

    engine: str
    minutes: float
    load: float
    queries: int
    samples: tuple[Sample, ...]


async def run_soak(
    engine: Engine,
    *,
    folder: Path,
    seed: int,
    minutes: float,
    load: float,
    say: Callable[[Sample], None],
) -> SoakResult:
    """Offer `load` times what the instances can do for so many minutes; `say` is told of each look.

    Raises ServingError for a server that does not start.
    """
    model = write_known_model(folder, seed)
    server = SERVERS[engine](model, folder, deadline=DEADLINE, service=SERVICE)
    ledger = Ledger()
    samples = []
    async with running(server) as run:
        # One row a request: an instance runs one at a time.
        traffic = run.traffic(ledger, rate=load * INSTANCES / SERVICE, seed=seed)
        traffic.mix, traffic.phase = Mix(rows=(1,)), "soak"
        began = time.monotonic()
        with (folder.parent / f"soak-{engine}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Sample.__struct_fields__)
            async with offered(traffic):
                while (at := time.monotonic() - began) < minutes * 60:
                    samples.append(_look(run, at))
                    writer.writerow(msgspec.structs.astuple(samples[-1]))
                    file.flush()
                    say(samples[-1])
                    await asyncio.sleep(min(EVERY, minutes * 3))
        repairs = await run.repairs()
    return SoakResult(
        engine,
        minutes,
        load,
        ledger.sent_queries,
        tuple(samples),
        claims=(*growth_claims(samples), *claims_of(ledger, run.http.surplus, repairs)),
        date=datetime.now(UTC).isoformat(timespec="minutes"),
    )


def _look(run: Running, at: float) -> Sample:
    pids = run.server.processes()
    return Sample(
        at,
        sum(map(resident, pids)),
        resident(run.server.front.pid),
        sum(map(descriptors, pids)) - run.http.open,
        len(pids),
    )


def growth_claims(samples: list[Sample]) -> tuple[Claim, ...]:
    """What must hold of memory and descriptors, computed: of the tenth of looks after the warm-up,
    and of the last tenth, the medians are compared."""
    last = samples[-1].at
    steady = [sample for sample in samples if sample.at >= min(WARM_UP, last / 6)]
    tenth = max(1, len(steady) // 10)
    first, final = steady[:tenth], steady[-tenth:]

    def median(part: list[Sample], of: str) -> float:
        return float(np.median([getattr(sample, of) for sample in part]))

    grown = median(final, "resident") / median(first, "resident") - 1
    before, after = median(first, "descriptors"), median(final, "descriptors")
    return (
        Claim(f"resident memory grows by less than {GROWTH:.0%} after the warm-up",
              f"{grown:+.2%}", grown < GROWTH),
        Claim("descriptors are constant", f"{before:g} and {after:g}", after <= before),
    )  # fmt: skip
