"""What the live page and metrics cost a server in processor time: with nobody watching, with some
who do, and with metrics that are scraped.

The servers run at once and are asked the same queries in turns, at a steady pace, so that whatever
else the machine does hits them alike. Counted is the time of the server's own process: its workers
do nothing else with a page than without. A server may have several models, which are asked in turn.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, nullcontext
from time import perf_counter
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import urlopen

import msgspec

from parity_models.errors import LoadError
from parity_models.load.served import Served, served
from parity_models.models.bundle import Bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.server import ServeOptions
from parity_models_lab.costs import served_repository
from parity_models_lab.costs.asked import Asked, generated_bundle
from parity_models_lab.processes import cpu_seconds

T = TypeVar("T")

WARM_UP = 3.0
"""Seconds before it counts."""

UNWATCHED_AT_MOST, WATCHED_AT_MOST = 0.01, 0.05
"""The shares of a core that the page may cost while nobody watches, and while WATCHERS do."""

WATCHERS = 10

SCRAPE_EVERY = 1.0
"""Seconds between two scrapes: more often than Prometheus scrapes by default."""


class PageCost(msgspec.Struct, frozen=True):
    """Shares of a core: of a server without a page, and what one costs more with a page that nobody
    watches, with one that `watchers` do, and without a page where metrics are scraped.

    `models` are those of a repository; None: each serves one bundle.
    """

    seconds: float
    rate: float
    watchers: int
    models: int | None
    without: float
    unwatched: float
    watched: float
    scraped: float


async def measure_page(
    bundle: Bundle | None = None,
    *,
    policy: str,
    rate: float,
    seconds: float,
    models: int | None = None,
    warm_up: float = WARM_UP,
    watchers: int = WATCHERS,
) -> PageCost:
    """Serve `bundle`, or a generated MLP, four times at once, ask each `rate` queries a second for
    `seconds` after `warm_up` seconds, and compare.

    With `models`, each server has a repository of so many, all of them the bundle; a watcher
    follows one of them.
    """
    names = [f"model-{number}" for number in range(models or 0)]
    with (
        generated_bundle(bundle) as bundle,
        served_repository.copies_of(bundle, names) if names else nullcontext() as folder,
    ):
        what, module = bundle.path, served.__module__
        if folder is not None:
            what, module = folder, served_repository.__name__
        choice = PolicyChoice(policy)
        async with AsyncExitStack() as stack:
            servers = [
                await stack.enter_async_context(
                    served(
                        what, ServeOptions(policy=choice, instances=1, port=0, ui=ui), module=module
                    )
                )
                for ui in (False, True, True, False)
            ]
            for number in range(watchers):
                for of in _watched(names, number):
                    await stack.enter_async_context(_watching(servers[2].url, of))
            await stack.enter_async_context(_scraping(servers[3].url))
            asked = names or [bundle.manifest.name]
            await _ask(bundle, asked, servers, rate, warm_up)
            before = [cpu_seconds([server.pid]) for server in servers]
            took = await _ask(bundle, asked, servers, rate, seconds)
            shares = [
                (cpu_seconds([server.pid]) - spent) / took
                for server, spent in zip(servers, before, strict=True)
            ]
    without, *others = shares
    more = [each - without for each in others]
    # The rate is less than it should be where the machine is busy.
    return PageCost(took, int(rate * seconds) / took, watchers, models, without, *more)


def _watched(models: Sequence[str], number: int) -> Sequence[str]:
    """The queries of what a watcher's page follows."""
    if not models:
        return ("",)
    return (f"?model={models[number % len(models)]}&version=1",)


async def _ask(
    bundle: Bundle, models: Sequence[str], servers: Sequence[Served], rate: float, seconds: float
) -> float:
    """Ask every server so often, for so long, its models in turn; returns how long it took."""
    asked = Asked.of(bundle)
    clients = [[asked.of_name(name).client(server.url) for server in servers] for name in models]
    began = perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(began + number / rate - perf_counter())
        of_model = clients[number // len(servers) % len(clients)]
        for client in in_turn(of_model, number):
            client.infer(asked.row)
    for of_model in clients:
        for client in of_model:
            client.close()
    return perf_counter() - began


def in_turn(servers: Sequence[T], number: int) -> Sequence[T]:
    """These, with another one first each time: the first after a pause finds the processor's caches
    cold, and warms them for the others, which run the same code."""
    first = number % len(servers)
    return [*servers[first:], *servers[:first]]


@asynccontextmanager
async def _watching(url: str, of: str) -> AsyncIterator[None]:
    """Somebody watches this of the server at `url`. Raises LoadError if that cannot be."""
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    with closing(writer):
        writer.write(f"GET /ui/events{of} HTTP/1.1\r\nHost: {at.netloc}\r\n\r\n".encode())
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


@asynccontextmanager
async def _scraping(url: str) -> AsyncIterator[None]:
    """The metrics of the server at `url` are read again and again."""

    def scrape() -> None:
        with urlopen(f"{url}/metrics") as answer:
            answer.read()

    async def again_and_again() -> None:
        while True:
            await asyncio.to_thread(scrape)
            await asyncio.sleep(SCRAPE_EVERY)

    scraping = asyncio.create_task(again_and_again())
    try:
        yield
    finally:
        scraping.cancel()
