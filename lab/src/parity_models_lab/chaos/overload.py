"""The command `overload`: goodput and refusals of a server that is offered more than it can do."""

import asyncio
import time
from contextlib import suppress
from math import ceil
from pathlib import Path

import numpy as np

from parity_models.load import LoadSpec
from parity_models.load.target import Ask, NoAnswerError, target
from parity_models.options import option
from parity_models_lab.chaos.known_model import MODEL, write_known_model
from parity_models_lab.chaos.server import INSTANCES, RESULTS, Engine, TestedServer
from parity_models_lab.processes import offer_load_from_own_process
from parity_models_lab.results import OutFolder, Row, check_out, report

FACTORS = (1.2, 2.0, 3.0, 5.0)
DEADLINES = (0.1, 1.0, 10.0)
SERVICE = 0.02
"""Median seconds that an instance takes for a unit."""
WARM_UP = 1.0
"""Seconds at the start of each load that are not counted."""
PATIENCE = 15.0
"""Seconds for which a server is watched after a load."""


def overload(
    seconds: float = option(10.0, "Of each load, at least.", unit="s", ge=1),
    out: OutFolder = RESULTS,
) -> None:
    """Send 1.2 to 5 times the load that a server of emulated service times can carry.

    Deadlines are from 0.1 to 10 s. Clients wait for them, or give up after half of it, or a second
    if that is sooner. `goodput` is the share of capacity that was answered in time while the load
    lasted; `p99` is of answered queries, in ms; `back` is how many seconds after the load's end a
    query is sent that is answered within ten service times; `send delay` is the p99 of how late
    clients sent, in ms: where it is long, the machine was too busy to learn anything.
    """
    check_out(out)
    rows = asyncio.run(_run(seconds, out / "overload-local"))
    report("Overload on the engine local", rows, out / "overload-local.json")


async def _run(seconds: float, folder: Path) -> list[Row]:
    rows: list[Row] = []
    model = write_known_model(folder, 0)
    queries = folder / "queries.npy"
    np.save(queries, model.rows)
    for deadline in DEADLINES:
        server = TestedServer(model, Engine.LOCAL, folder, SERVICE, deadline=deadline)
        async with server.running(), target(server.url, MODEL) as asked:
            ask = asked.prepare({"input": model.rows[:1]})
            capacity = await _capacity(ask, seconds)
            # Long deadlines take longer to fill the queue with what can be in time.
            lasting = max(seconds, 1.5 * deadline)
            for factor in FACTORS:
                for gives_up in (None, min(1.0, deadline / 2)):
                    load = LoadSpec(
                        url=server.url,
                        model=MODEL,
                        binary=True,
                        inputs=str(queries),
                        rate=factor * capacity,
                        queries=ceil(factor * capacity * lasting),
                        warm_up=ceil(factor * capacity * WARM_UP),
                        timeout=gives_up or deadline + 5,
                        connections=512,
                    )
                    about = {"deadline": deadline, "gives up": gives_up, "capacity": capacity}
                    row = await _offer(load, ask, gives_up or deadline, capacity)
                    rows.append({"times capacity": factor, **about, **row})
    return rows


async def _capacity(ask: Ask, seconds: float) -> float:
    """Return the queries a second that closed-loop clients get, two for each instance."""
    ends, answered = time.monotonic() + seconds, 0

    async def again() -> None:
        nonlocal answered
        while time.monotonic() < ends:
            with suppress(NoAnswerError):
                await ask(lambda: None)
                answered += 1

    await asyncio.gather(*(again() for _ in range(2 * INSTANCES)))
    return answered / seconds


async def _offer(load: LoadSpec, ask: Ask, useful: float, capacity: float) -> Row:
    """Offer a load, of which answers within `useful` seconds count."""
    began = asyncio.Event()
    lasts = float(load.due[-1] - load.due[load.warm_up_requests])

    async def recovery() -> float | None:
        """Return the seconds until a query is sent that is answered within ten service times."""
        await began.wait()
        await asyncio.sleep(lasts)
        over = time.monotonic()
        while (sent := time.monotonic()) < over + PATIENCE:
            with suppress(NoAnswerError, TimeoutError):
                async with asyncio.timeout(10 * SERVICE):
                    await ask(lambda: None)
                return sent - over
            await asyncio.sleep(0.05)
        return None

    recovering = asyncio.create_task(recovery())
    try:
        found = await offer_load_from_own_process(load, began.set)
        back = await recovering
    finally:
        recovering.cancel()
    latency, answered = found.latency, found.answered
    good = answered & (latency <= useful) & (found.scheduled + latency < lasts)
    return {
        "offered": len(found),
        "goodput": int(good.sum()) / (capacity * lasts),
        "p99": float(np.quantile(latency[answered], 0.99)) * 1e3 if answered.any() else None,
        "errors": found.errors(),
        "back": back,
        "send delay": float(np.nanquantile(found.send_delay, 0.99)) * 1e3,
    }
