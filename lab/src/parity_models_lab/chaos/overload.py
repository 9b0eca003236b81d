"""Overload: goodput, refusals and memory of a server that is offered more than it can do."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import ceil
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.target import NoAnswerError, Target, target
from parity_models_lab.chaos.known_model import INPUTS, MODEL, Floats, write_known_model
from parity_models_lab.chaos.server import INSTANCES, Engine, TestedServer, running
from parity_models_lab.results import Row

FACTORS = (1.2, 2.0, 3.0, 5.0)
DEADLINES = (0.1, 1.0, 10.0)
SERVICE, FAST = 0.02, 0.001
"""Median seconds that an instance takes for a unit, and under large requests."""
CLIENTS = 4
"""Processes that offer a load together."""

WARM_UP = 1.0
"""Seconds at the start of each load that are not counted."""
GIVE_UP = 1.0
"""Seconds after which impatient clients give up, or half of the deadline if that is sooner."""
LARGE_ROWS, LARGE_CLIENTS = 1000, (0, 1, 2, 5, 20)
"""Rows of a large request, and the numbers of clients that send such."""
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
    answered within ten service times. `send delay`, the p99 of how late clients sent, in ms: where
    it is long, the machine was too busy to learn anything.

    Raises:
        ServingError: The server does not start.

    """
    model = write_known_model(folder, seed)
    queries = folder / "queries.npy"
    np.save(queries, model.rows)
    for deadline in deadlines:
        server = TestedServer(model, engine, folder, deadline=deadline, service=SERVICE)
        async with running(server), target(server.url, MODEL) as asked:
            capacity = await _capacity(asked, model.rows[:1], seconds)
            # Long deadlines take longer to fill the queue with what can be in time.
            lasting = max(seconds, 1.5 * deadline)
            for factor in factors:
                for gives_up in (None, min(GIVE_UP, deadline / 2)):
                    load = LoadSpec(
                        url=server.url,
                        model=MODEL,
                        binary=True,
                        inputs=str(queries),
                        rate=factor * capacity / CLIENTS,
                        queries=ceil(factor * capacity * lasting / CLIENTS),
                        warm_up=ceil(factor * capacity * WARM_UP / CLIENTS),
                        seed=seed,
                        timeout=deadline + 5 if gives_up is None else gives_up,
                        connections=512,
                    )
                    about = {"deadline": deadline, "gives up": gives_up, "capacity": capacity}
                    row = await _offer(server, load, asked, gives_up or deadline, capacity)
                    yield {"times capacity": factor, **about, **row}


async def run_large_requests(folder: Path, seed: int, seconds: float) -> AsyncIterator[Row]:
    """Let closed-loop clients of 1,000-row JSON requests press on a server; yield a row for each
    number of them.

    `big answers` are theirs, `p99` that of a client of single rows, and `health` the longest answer
    of /v2/health/live; both in ms, and asked by another process than theirs.

    Raises:
        ServingError: The server does not start.

    """
    model = write_known_model(folder, seed)
    batch = ("--max-batch", "16")
    server = TestedServer(model, Engine.LOCAL, folder, deadline=10.0, service=FAST, options=batch)
    own_process = ProcessPoolExecutor(1, get_context("spawn"))
    rows, loop = np.resize(model.rows, (LARGE_ROWS, INPUTS)), asyncio.get_running_loop()
    with own_process:
        async with (
            running(server) as (http, _),
            target(server.url, MODEL, binary=False) as asked,
        ):
            for clients in LARGE_CLIENTS:
                press = partial(_press, server.url, rows, clients, seconds)
                pressing = loop.run_in_executor(own_process, press)
                small, health = await asyncio.gather(
                    _answered(asked.prepare({"input": rows[:1]}), seconds, pause=0.02),
                    _answered(lambda _: http.ask("GET", "/v2/health/live"), seconds, pause=0.02),
                )
                yield {
                    "clients": clients,
                    "big answers": await pressing,
                    "p99": float(np.quantile(small, 0.99)) * 1e3 if small else None,
                    "health": max(health, default=0.0) * 1e3,
                }


def _press(url: str, rows: Floats, clients: int, seconds: float) -> int:
    """Let clients ask about `rows` again and again. Return the number of answers."""

    async def press() -> int:
        async with target(url, MODEL, binary=False) as asked:
            send = asked.prepare({"input": rows})
            return len(await _answered(send, seconds, clients)) if clients else 0

    return asyncio.run(press())


async def _answered(
    send: Callable[[Callable[[], None]], Awaitable[object]],
    seconds: float,
    clients: int = 1,
    *,
    pause: float = 0.0,
) -> list[float]:
    """Let clients send again and again, also where refused. Return the seconds until each
    answer."""
    took: list[float] = []

    async def again() -> None:
        while True:
            began = time.monotonic()
            with suppress(NoAnswerError):
                await send(_nothing)
                took.append(time.monotonic() - began)
            await asyncio.sleep(pause)

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(again() for _ in range(clients)))
    return took


async def _capacity(asked: Target, row: Floats, seconds: float) -> float:
    """Return the queries a second that twice as many closed-loop clients as instances get."""
    send = asked.prepare({"input": row})
    return len(await _answered(send, seconds, 2 * INSTANCES)) / seconds


async def _offer(
    server: TestedServer, load: LoadSpec, asked: Target, useful: float, capacity: float
) -> Row:
    """Offer a load from each of CLIENTS processes; answers within `useful` seconds count."""
    started, memory = asyncio.Event(), server.memory()
    lasts = float(load.due[-1] - load.due[load.warm_up_requests])

    async def recovery() -> float | None:
        await started.wait()
        await asyncio.sleep(lasts)
        return await _back_to_normal(asked, server.model.rows[:1])

    recovering = asyncio.create_task(recovery())
    try:
        seeds = range(CLIENTS * load.seed, CLIENTS * (load.seed + 1))
        results = await asyncio.gather(
            *(offer_load_from_own_process(replace(load, seed=s), started.set) for s in seeds)
        )
        back = await recovering
    finally:
        recovering.cancel()
    latency, answered, scheduled, send_delay = (
        np.concatenate([getattr(each, name) for each in results])
        for name in ("latency", "answered", "scheduled", "send_delay")
    )
    good = answered & (latency <= useful) & (scheduled + latency < lasts)
    return {
        "offered": len(latency),
        "goodput": int(good.sum()) / (capacity * lasts),
        "p99": float(np.quantile(latency[answered], 0.99)) * 1e3 if answered.any() else None,
        "errors": dict(sum((Counter(each.errors()) for each in results), Counter[str]())),
        "memory MiB": (server.memory() - memory) / 2**20,
        "back": back,
        "send delay": float(np.nanquantile(send_delay, 0.99)) * 1e3,
    }


async def _back_to_normal(asked: Target, row: Floats) -> float | None:
    """Return the seconds until a query is sent that is answered within ten service times; None: not
    within PATIENCE."""
    over, send, quick = time.monotonic(), asked.prepare({"input": row}), list[float]()

    async def ask() -> None:
        sent = time.monotonic()
        with suppress(NoAnswerError, TimeoutError):
            async with asyncio.timeout(10 * SERVICE):
                await send(_nothing)
            quick.append(sent - over)

    tasks = []
    while not quick and time.monotonic() < over + PATIENCE:
        tasks.append(asyncio.create_task(ask()))
        await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)
    return min(quick, default=None)


def _nothing() -> None:
    """Ignore that a request goes out."""
