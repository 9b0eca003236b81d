"""What the live page costs a server in processor time: with nobody watching, and with some.

The servers run at once and are asked the same queries in turns, at a steady pace, so that whatever
else the machine does hits them alike. Counted is the time of the server's own process: its workers
do nothing else with a page than without.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from time import perf_counter
from urllib.parse import urlsplit

import msgspec
import numpy as np

from parity_models.errors import LoadError
from parity_models.lab.costs.bare_client import BareClient
from parity_models.lab.costs.overhead import generated_bundle
from parity_models.lab.costs.processes import cpu_seconds
from parity_models.lab.latency.served import Served, served
from parity_models.load.wire import ModelMetadata
from parity_models.models.bundle import Bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.server import ServeOptions

WARM_UP = 3.0
"""Seconds before it counts."""

UNWATCHED_AT_MOST, WATCHED_AT_MOST = 0.01, 0.05
"""The shares of a core that the page may cost while nobody watches, and while WATCHERS do."""

WATCHERS = 10


class PageCost(msgspec.Struct, frozen=True):
    """Shares of a core: of a server without a page, and what one costs more with a page that nobody
    watches, and with one that `watchers` do."""

    seconds: float
    rate: float
    watchers: int
    without: float
    unwatched: float
    watched: float


async def measure_page(
    bundle: Bundle | None = None,
    *,
    policy: str,
    rate: float,
    seconds: float,
    warm_up: float = WARM_UP,
    watchers: int = WATCHERS,
) -> PageCost:
    """Serve `bundle`, or a generated MLP, three times at once, ask each `rate` queries a second for
    `seconds` after `warm_up` seconds, and compare."""
    with generated_bundle(bundle) as bundle:
        choice = PolicyChoice(policy)
        async with AsyncExitStack() as stack:
            servers = [
                await stack.enter_async_context(
                    served(bundle.path, ServeOptions(policy=choice, instances=1, port=0, ui=ui))
                )
                for ui in (False, True, True)
            ]
            for _ in range(watchers):
                await stack.enter_async_context(_watching(servers[-1].url))
            await _ask(bundle, servers, rate, warm_up)
            before = [cpu_seconds([server.pid]) for server in servers]
            took = await _ask(bundle, servers, rate, seconds)
            asked = int(rate * seconds) / took  # less than it should be where the machine is busy
            shares = [
                (cpu_seconds([server.pid]) - spent) / took
                for server, spent in zip(servers, before, strict=True)
            ]
    without, unwatched, watched = shares
    return PageCost(took, asked, watchers, without, unwatched - without, watched - without)


async def _ask(bundle: Bundle, servers: Sequence[Served], rate: float, seconds: float) -> float:
    """Ask every server so often, for so long; returns how long it took."""
    deployed = bundle.manifest.deployed
    takes = deployed.input
    model = ModelMetadata.of(bundle.manifest.name, takes, deployed.output)
    row = np.random.default_rng(0).random(takes.shape).astype(takes.dtype)
    clients = [BareClient(server.url, model) for server in servers]
    began = perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(began + number / rate - perf_counter())
        for client in clients:
            client.infer(row)
    for client in clients:
        client.close()
    return perf_counter() - began


@asynccontextmanager
async def _watching(url: str) -> AsyncIterator[None]:
    """Somebody watches the page of the server at `url`. Raises LoadError if that cannot be."""
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    with closing(writer):
        writer.write(f"GET /ui/events HTTP/1.1\r\nHost: {at.netloc}\r\n\r\n".encode())
        if b" 200 " not in await reader.readline():
            raise LoadError(f"{url} has no page to watch")
        reading = asyncio.create_task(_drop(reader))
        try:
            yield
        finally:
            reading.cancel()


async def _drop(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass
