"""parm top: what a server does, as it does it, in a terminal."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

import aiohttp
import msgspec
import typer
from rich.console import Console
from rich.live import Live

from parity_models.cli.credentials import CaFile, Token
from parity_models.cli.top_view import Seen, view
from parity_models.errors import UserError
from parity_models.load.credentials import ANONYMOUS, Credentials
from parity_models.load.recorder import split_address
from parity_models.load.scrapes import Scrapes, scrape
from parity_models.serving.page.frames import PageFrame
from parity_models.serving.unreachable import why_unreachable

MAX_FRAME = 8 * 2**20
"""Bytes that a frame, or a server's metrics, may have."""

PATIENCE = 5.0
"""Seconds that a server has to send its next frame."""

EVERY = 1.0
"""Seconds between two looks at the metrics."""


def top(
    url: Annotated[
        str, typer.Argument(help="The server's URL, as parm serve prints it.", metavar="URL")
    ] = "http://127.0.0.1:8000",
    once: Annotated[bool, typer.Option("--once", help="Print how it is now, and exit.")] = False,
    token: Token = None,
    ca_file: CaFile = None,
) -> None:
    """Show what a server does, as it does it, in a terminal.

    Of a server on this machine that runs with --ui, it shows what its page shows. Of any other one,
    on Ray too, it shows what /metrics tells: rates, latencies, sources, agreement. Ctrl-C ends it.
    Into a pipe it prints how it is now.
    """
    console = Console()
    base, credentials = _base(url), Credentials(token, ca_file)
    once = once or not console.is_terminal
    try:
        asyncio.run(show(console, base, once=once, credentials=credentials))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def show(
    console: Console, url: str, *, once: bool, credentials: Credentials = ANONYMOUS
) -> None:
    """Draw what the server at `url` tells as it does; `once`: the first. Raises UserError where
    that ends, or there is nothing."""
    seen = Seen()
    if once:
        async for frame in _frames(url, credentials):
            seen.add(frame)
            console.print(view(seen))
            return
    with Live(console=console, screen=True, auto_refresh=False) as screen:
        async for frame in _frames(url, credentials):
            seen.add(frame)
            screen.update(view(seen), refresh=True)
    raise UserError(f"the server at {url} has ended")


def _base(url: str) -> str:
    """Where a server is. Raises UserError for what is no URL."""
    parts = split_address(url)
    return f"{parts.scheme}://{parts.netloc}"


async def _frames(url: str, credentials: Credentials) -> AsyncIterator[PageFrame]:
    """The frames of a server, until it ends. Raises UserError where there are none."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE)
    try:
        async with aiohttp.ClientSession(
            url,
            connector=aiohttp.TCPConnector(ssl=credentials.tls),
            timeout=timeout,
            headers=credentials.headers,
            read_bufsize=MAX_FRAME,
        ) as session:
            async with session.get("/ui/events") as events:
                if events.status == 200:
                    async for line in events.content:
                        if line.startswith(b"data: "):
                            yield msgspec.json.decode(line.removeprefix(b"data: "), type=PageFrame)
                    return
                if events.status not in (403, 404):  # no page, or none for this machine
                    raise UserError(await _refusal(url, events))
            async for frame in _from_metrics(url, session):
                yield frame
    except TimeoutError as error:
        raise UserError(f"{url} has sent nothing for {PATIENCE:g} s") from error
    except aiohttp.ClientError as error:
        raise UserError(f"no server answers at {url}: {why_unreachable(error)}") from error
    except ValueError as error:  # a line too long, not a frame, or no metrics
        raise UserError(f"{url} sent something that this version cannot read: {error}") from error


async def _from_metrics(url: str, session: aiohttp.ClientSession) -> AsyncIterator[PageFrame]:
    """What the metrics tell, again and again. Raises UserError where there are none."""
    async with session.post("/v2/repository/index") as response:
        names = [each["name"] for each in await response.json()] if response.ok else []
    scrapes = Scrapes(", ".join(names))
    while True:
        async with session.get("/metrics") as response:
            if response.status != 200:
                raise UserError(await _refusal(url, response))
            text = await response.text()
        async with session.get("/v2/health/ready") as response:
            ready = response.status == 200
        frame = scrapes.add(scrape(text, time.time()), ready=ready)
        if frame is not None:
            yield frame
        await asyncio.sleep(EVERY)


async def _refusal(url: str, response: aiohttp.ClientResponse) -> str:
    if response.status == 404:
        return (
            f"the server at {url} has neither a page (parm serve --ui) nor metrics there; give the "
            "URL of its metrics, where they have a port of their own"
        )
    text = (await response.content.read(1000)).decode(errors="replace")
    return f"{url} refuses (HTTP {response.status}): {text}"
