"""Clients that behave badly: slow, vanishing, deaf and idle ones. None of them asks a query whole,
so that none of them is in the ledger."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from urllib.parse import urlsplit

from parity_models_lab.reliability.known_model import KnownModel
from parity_models_lab.reliability.ledger import Kind
from parity_models_lab.reliability.requests import Drawn, http_request

BYTE_EVERY = 0.2
"""Seconds between two bytes of a slow client."""


class RudeClients:
    """Clients of the server at `url`."""

    def __init__(self, url: str, model: KnownModel) -> None:
        at = urlsplit(url)
        assert at.hostname is not None
        self._address = at.hostname, at.port
        self._request = http_request(Drawn(Kind.HONEST, model.rows[:1]), 0, at.netloc)
        self._long = http_request(Drawn(Kind.HONEST, model.rows, json=True), 0, at.netloc)

    @asynccontextmanager
    async def slow(self, clients: int, rng: Random) -> AsyncIterator[None]:
        """Some send their heads byte by byte, some their bodies."""
        async with self._all(clients, lambda: self._trickle(rng.random() < 0.5)):
            yield

    @asynccontextmanager
    async def half(self, clients: int, rng: Random) -> AsyncIterator[None]:
        """They send half a request and go, again and again."""
        async with self._all(clients, lambda: self._send_half(rng)):
            yield

    @asynccontextmanager
    async def deaf(self, clients: int) -> AsyncIterator[None]:
        """They send requests one after the other, and read nothing."""
        async with self._all(clients, self._read_nothing):
            yield

    def idle(self, connections: int) -> list[socket.socket]:
        """So many connections that say nothing, or as many as there can be."""
        opened = []
        for _ in range(connections):
            client = socket.socket()
            client.setblocking(False)
            with suppress(BlockingIOError, OSError):
                client.connect(self._address)
            opened.append(client)
        return opened

    @asynccontextmanager
    async def _all(
        self, clients: int, behave: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        async def again() -> None:
            while True:
                with suppress(OSError):
                    await behave()
                await asyncio.sleep(0.05)

        tasks = [asyncio.create_task(again()) for _ in range(clients)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _trickle(self, head: bool) -> None:
        async with self._connection() as writer:
            end = self._long.index(b"\r\n\r\n")
            if not head:
                writer.write(self._long[: end + 10])
            for at in range(0 if head else end + 10, len(self._long)):
                writer.write(self._long[at : at + 1])
                await writer.drain()
                await asyncio.sleep(BYTE_EVERY)

    async def _send_half(self, rng: Random) -> None:
        async with self._connection() as writer:
            writer.write(self._request[: rng.randrange(1, len(self._request))])
            await writer.drain()
            await asyncio.sleep(rng.uniform(0.0, 0.1))

    async def _read_nothing(self) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            await loop.sock_connect(client, self._address)
            # Answers are large, and nobody asks the model for them: metrics.
            while True:
                request = f"GET /metrics HTTP/1.1\r\nHost: {self._address[0]}\r\n\r\n"
                await loop.sock_sendall(client, request.encode())
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncio.StreamWriter]:
        _, writer = await asyncio.open_connection(*self._address)
        try:
            yield writer
        finally:
            writer.transport.abort()
