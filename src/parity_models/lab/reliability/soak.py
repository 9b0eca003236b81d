"""parm lab soak: memory and descriptors of a server under steady load, for an hour."""

import asyncio
import csv
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from parity_models.lab.reliability.chaos_result import Claim, claims_of
from parity_models.lab.reliability.grpc_client import GrpcClients
from parity_models.lab.reliability.http_client import HttpClients
from parity_models.lab.reliability.known_model import write_known_model
from parity_models.lab.reliability.ledger import Ledger
from parity_models.lab.reliability.processes import descriptors, resident
from parity_models.lab.reliability.requests import Mix
from parity_models.lab.reliability.servers import INSTANCES, Engine, metrics, server_on, total
from parity_models.lab.reliability.traffic import Traffic

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


class SoakResult(msgspec.Struct, frozen=True):
    """A soak; `samples` are in soak-ENGINE.csv, too."""

    engine: str
    minutes: float
    load: float
    queries: int
    samples: tuple[Sample, ...]
    claims: tuple[Claim, ...]
    date: str
    command: str = ""

    @property
    def met(self) -> bool:
        return all(claim.met for claim in self.claims)


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
    folder.mkdir(parents=True, exist_ok=True)
    model = write_known_model(folder, seed)
    server = server_on(engine, model, folder, deadline=DEADLINE, service=SERVICE)
    ledger = Ledger()
    samples = []
    await server.start()
    try:
        http = HttpClients(server.url)
        grpc = GrpcClients(server.front.grpc_address) if server.front.grpc_address else None
        # One row a request: an instance runs one at a time.
        rate = load * INSTANCES / SERVICE
        traffic = Traffic(model, http, grpc, ledger, rate=rate, seed=seed, deadline=DEADLINE)
        traffic.mix, traffic.phase = Mix(rows=(1,)), "soak"
        over = asyncio.Event()
        sending = asyncio.create_task(traffic.run(over))
        began = time.monotonic()
        with (folder.parent / f"soak-{engine}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Sample.__struct_fields__)
            while (at := time.monotonic() - began) < minutes * 60:
                pids = server.processes()
                sample = Sample(
                    at,
                    sum(map(resident, pids)),
                    resident(server.front.pid),
                    sum(map(descriptors, pids)) - http.open,
                    len(pids),
                )
                samples.append(sample)
                writer.writerow(msgspec.structs.astuple(sample))
                file.flush()
                say(sample)
                await asyncio.sleep(min(EVERY, minutes * 3))
        over.set()
        await sending
        await traffic.settle()
        found = await metrics(http)
        http.close()
        if grpc is not None:
            await grpc.close()
    finally:
        await server.stop()
    known = any(name.startswith("parm_repairs_total") for name in found)
    repairs = total(found, "parm_repairs_total") if known else None
    return SoakResult(
        engine,
        minutes,
        load,
        ledger.sent_queries,
        tuple(samples),
        (*growth_claims(samples), *claims_of(ledger, http.surplus, repairs)),
        datetime.now(UTC).isoformat(timespec="minutes"),
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
