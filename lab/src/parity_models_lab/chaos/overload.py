"""Overload: goodput, refusals and memory of a server that is offered more than it can do."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path

import numpy as np

from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.target import NoAnswerError, Target, target
from parity_models_lab.chaos.known_model import MODEL, KnownModel, write_known_model
from parity_models_lab.chaos.server import INSTANCES, Engine, TestedServer, running
from parity_models_lab.results import Row

FACTORS = (1.2, 2.0, 3.0, 5.0)
DEADLINES = (0.1, 1.0, 10.0)
SERVICE = 0.02
"""Median seconds that an instance takes for a unit."""
WARM_UP = 1.0
"""Seconds at the start of each load that are not counted."""
GIVE_UP = 1.0
"""Seconds after which impatient clients give up, or half of the deadline if that is sooner."""
FAST = 0.001
"""The same, under large requests."""
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
    answered within the deadline, `fast` within ten service times. `send delay`, the p99 of how late
    clients sent, in ms: where it is long, the machine was too busy to learn anything.

    Raises:
        ServingError: The server does not start.

    """
    model = write_known_model(folder, seed)
    queries = folder / "queries.npy"
    np.save(queries, model.rows)
    for deadline in deadlines:
        server = TestedServer(model, engine, folder, deadline=deadline, service=SERVICE)
        async with running(server), target(server.url, MODEL) as asked:
            capacity = await _capacity(asked, model, seconds)
            # Long deadlines take longer to fill the queue with what can be in time.
            lasting = max(seconds, 1.5 * deadline)
            for factor in factors:
                for gives_up in (None, min(GIVE_UP, deadline / 2)):
                    load = LoadSpec(
                        url=server.url,
                        model=MODEL,
                        binary=True,
                        inputs=str(queries),
                        rate=factor * capacity,
                        queries=ceil(factor * capacity * lasting),
                        warm_up=ceil(factor * capacity * WARM_UP),
                        seed=seed,
                        timeout=deadline + 5 if gives_up is None else gives_up,
                        connections=512,
                        processes=4,
                    )
                    row = await _offer(server, load, asked, model, gives_up or deadline, capacity)
                    about = {"deadline": deadline, "gives up": gives_up}
                    yield {"times capacity": factor, **about, **row}


async def run_large_requests(folder: Path, seed: int, seconds: float) -> AsyncIterator[Row]:
    """Let closed-loop clients of 1,000-row JSON requests press on a server; yield a row for each
    number of them.

    `big answers` are theirs, `p99` that of a client of single rows, in ms, and `health` the longest
    answer of /v2/health/live, asked over the same event loop, in ms.

    Raises:
        ServingError: The server does not start.

    """
    model = write_known_model(folder, seed)
    batch = ("--max-batch", "16")
    server = TestedServer(model, Engine.LOCAL, folder, deadline=10.0, service=FAST, options=batch)
    rows = np.resize(model.rows, (LARGE_ROWS, model.rows.shape[1]))
    async with (
        running(server) as (http, _),
        target(server.url, MODEL, binary=False) as asked,
    ):
        big, small = asked.prepare({"input": rows}), asked.prepare({"input": rows[:1]})
        for clients in LARGE_CLIENTS:
            answered: list[float] = []
            took: list[float] = []
            health: list[float] = []
            work = [_again(big, answered) for _ in range(clients)]
            work += [
                _again(small, took, pause=0.02),
                _again(lambda _: http.ask("GET", "/v2/health/live"), health, pause=0.02),
            ]
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await asyncio.gather(*work)
            yield {
                "clients": clients,
                "big answers": len(answered),
                "p99": float(np.quantile(took, 0.99)) * 1e3 if took else None,
                "health": max(health, default=0.0) * 1e3,
            }


async def _again(
    send: Callable[[Callable[[], None]], Awaitable[object]],
    took: list[float],
    pause: float = 0.0,
) -> None:
    """Send again and again, also where refused; enter the seconds until each answer."""
    while True:
        began = time.monotonic()
        with suppress(NoAnswerError):
            await send(_nothing)
            took.append(time.monotonic() - began)
        await asyncio.sleep(pause)


async def _capacity(asked: Target, model: KnownModel, seconds: float) -> float:
    """Return the queries a second that twice as many closed-loop clients as instances get."""
    answered: list[float] = []
    send = asked.prepare({"input": model.rows[:1]})
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(_again(send, answered) for _ in range(2 * INSTANCES)))
    return len(answered) / seconds


async def _offer(
    server: TestedServer,
    load: LoadSpec,
    asked: Target,
    model: KnownModel,
    useful: float,
    capacity: float,
) -> Row:
    """Offer one load; answers within `useful` seconds count."""
    started, memory = asyncio.Event(), [server.memory()]
    lasts = float(load.due[-1] - load.due[load.warm_up_requests])

    async def watch() -> None:
        while True:
            memory.append(server.memory())
            await asyncio.sleep(0.25)

    async def recovery() -> tuple[float | None, float | None]:
        await started.wait()
        await asyncio.sleep(lasts)
        return await _back_to_normal(asked, model, server.deadline)

    watching, recovering = asyncio.create_task(watch()), asyncio.create_task(recovery())
    try:
        result = await offer_load_from_own_process(load, started.set)
        back, fast = await recovering
    finally:
        watching.cancel()
        recovering.cancel()
    latency, answered = result.latency, result.answered
    good = answered & (latency <= useful) & (result.scheduled + latency < lasts)
    return {
        "capacity": capacity,
        "offered": len(result),
        "goodput": int(good.sum()) / (capacity * lasts),
        "p99": float(np.quantile(latency[answered], 0.99)) * 1e3 if answered.any() else None,
        "errors": result.errors(),
        "memory MiB": (max(memory) - memory[0]) / 2**20,
        "back": back,
        "fast": fast,
        "send delay": float(np.nanquantile(result.send_delay, 0.99)) * 1e3,
    }


async def _back_to_normal(
    asked: Target, model: KnownModel, deadline: float
) -> tuple[float | None, float | None]:
    """Return the seconds until a query is sent that is answered in time, and until one is that is
    answered within ten service times; None: not within PATIENCE."""
    loop = asyncio.get_running_loop()
    over = loop.time()
    answered: list[tuple[float, float]] = []
    send = asked.prepare({"input": model.rows[:1]})

    async def ask(sent: float) -> None:
        with suppress(NoAnswerError, TimeoutError):
            async with asyncio.timeout(deadline):
                await send(_nothing)
            answered.append((sent - over, loop.time() - sent))

    tasks = []
    while loop.time() < over + PATIENCE and not any(took <= 10 * SERVICE for _, took in answered):
        tasks.append(asyncio.create_task(ask(loop.time())))
        await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)
    back = min((sent for sent, _ in answered), default=None)
    return back, min((sent for sent, took in answered if took <= 10 * SERVICE), default=None)


def _nothing() -> None:
    """Ignore that a request goes out."""
