"""The HTTP server: accepts connections, as many as the limits allow, and ends those that are late.

Out of connections or of file descriptors, a new client is refused with the reason, or waits to be
accepted; the clients that are there go on, and all is as before once some have left.
"""

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from ssl import SSLContext
from typing import Any

from parity_models.serving.errors import OverloadedError
from parity_models.serving.http.connection import HttpConnection
from parity_models.serving.http.listening import BACKLOG, turn_away
from parity_models.serving.http.patience import REFUSED_TIMEOUT
from parity_models.serving.metrics import HTTP, Metrics
from parity_models.serving.refusals import Refused
from parity_models.serving.rest.messages import Response, refusal
from parity_models.serving.rest.service import Rest

_log = logging.getLogger(__name__)

GRACE = 5
"""Seconds that a stopping server gives clients to send or fetch the rest of a message."""

LAST_MOMENT = 0.2
"""Seconds for which a stopping server waits for requests that are on their way already."""

HANDSHAKE = 0.01
"""Seconds for which a stopping server waits for connections whose first packet has come."""

_ACCEPTS = 64
"""Connections accepted in a row, before those that are there have their turn."""

_REFUSED = 16
"""Connections beyond the limit that are told so at a time; further ones wait to be accepted."""

_RESERVE = 32
"""File descriptors that connections leave to the rest of the server: its workers, above all."""

_RETRY = 0.2
"""Seconds after which a server without file descriptors looks for connections again."""

_TICK = 0.25
"""Seconds between two looks at what is late, at the most."""


class HttpServer:
    """Serves `rest` on one listening socket, within its limits; started and stopped once.

    With `tls`, over TLS: it is asked for the context of each connection.
    """

    def __init__(
        self, rest: Rest, metrics: Metrics, tls: Callable[[], SSLContext] | None = None
    ) -> None:
        self.rest = rest
        self.limits = rest.limits
        self.closing = False
        self._metrics = metrics
        self.received: Callable[[float], None] = metrics.received.labels(HTTP).inc
        self.sent: Callable[[float], None] = metrics.sent.labels(HTTP).inc
        self._tls = tls
        self._connections: set[HttpConnection] = set()
        self._refusing: set[HttpConnection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._accepting = False
        self._starved = False
        self._stopping = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._date = (0, b"")
        limits = self.limits
        shortest = min(
            limits.head_timeout, limits.body_timeout, limits.write_timeout, limits.idle_timeout
        )
        self._tick = min(_TICK, shortest / 4)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def start(self, listening: socket.socket) -> None:
        """Serve the connections of this socket, from now on, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._socket = listening
        listening.setblocking(False)
        self._accept_again()
        self._looking = self._loop.create_task(self._look())

    def drain(self) -> None:
        """From now on, every answer is the last of its connection."""
        self.closing = True

    async def stop(self, grace: float = GRACE) -> None:
        """Accept no more than those that wait for it, and end all connections: idle ones after a
        moment, the others after the answers that are under way, or `grace` seconds."""
        self.closing = self._stopping = True
        self._pause()
        turn_away(self._socket)
        await asyncio.sleep(HANDSHAKE)
        self._accept_backlog()
        self._socket.close()
        try:
            await self._opened()
            if not await self._emptied(LAST_MOMENT):
                for connection in list(self._connections):
                    if connection.idle:
                        connection.half_close()
            if not await self._emptied(grace):
                for connection in list(self._connections):
                    connection.abort()
                await self._empty.wait()
        finally:
            self._looking.cancel()

    async def _opened(self) -> None:
        """Wait for connections that are being made; for TLS, as long as for an idle client."""
        if self._opening:
            _, unmade = await asyncio.wait(
                self._opening, timeout=None if self._tls is None else LAST_MOMENT
            )
            for task in unmade:
                task.cancel()

    async def _emptied(self, seconds: float) -> bool:
        """Wait for so long until there are no connections; are there none?"""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        return self._empty.is_set()

    # For connections

    @property
    def date(self) -> bytes:
        """The header with the current date."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, f"date: {formatdate(now, usegmt=True)}\r\n".encode())
        return self._date[1]

    def lost(self, connection: HttpConnection) -> None:
        """The connection is over."""
        self._connections.discard(connection)
        self._refusing.discard(connection)
        if not self._connections:
            self._empty.set()
        if not self._accepting and not self._starved:
            self._accept_again()

    def ended(self, reason: str) -> None:
        """A limit has ended a connection."""
        self._metrics.connections_ended.labels(reason).inc()

    # Accepting

    def _accept_again(self) -> None:
        self._starved = False
        if not self._stopping and not self._accepting:
            self._accepting = True
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._socket.fileno())

    def _accept(self) -> None:
        for _ in range(_ACCEPTS):
            if len(self._refusing) >= _REFUSED:
                self._pause()  # until one of them has left
                return
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors or of memory for sockets
                _log.warning("no connection can be accepted for now: %s", error.strerror)
                self.ended("descriptors")
                self._pause()
                self._starved = True
                self._loop.call_later(_RETRY, self._accept_again)
                return
            self._welcome(accepted)

    def _accept_backlog(self) -> None:
        """Accept all that wait, as closing the socket would reset their connections."""
        with suppress(OSError):  # none is left, or no descriptor for one
            for _ in range(BACKLOG):
                accepted, _ = self._socket.accept()
                self._welcome(accepted)

    def _welcome(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        refused = self._refusal(accepted.fileno())
        connection = HttpConnection(self, refused)
        self._connections.add(connection)
        self._empty.clear()
        if refused is not None:
            self._refusing.add(connection)
        patience = REFUSED_TIMEOUT if refused is not None else self.limits.head_timeout
        task = self._loop.create_task(self._open(accepted, connection, patience))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(
        self, accepted: socket.socket, connection: HttpConnection, patience: float
    ) -> None:
        """Make a connection of what was accepted; TLS's handshake has `patience` (seconds)."""
        tls: dict[str, Any] = {}
        try:
            if self._tls is not None:
                tls = {"ssl": self._tls(), "ssl_handshake_timeout": patience}
                tls["ssl_shutdown_timeout"] = GRACE
            await self._loop.connect_accepted_socket(lambda: connection, accepted, **tls)
        except (Exception, asyncio.CancelledError) as error:
            # Over TLS, clients that speak no TLS, or not this one, are nothing to tell of.
            _log.log(
                logging.DEBUG if tls else logging.WARNING,
                "a connection broke as it was accepted: %r",
                error,
            )
            if tls:
                self.ended("handshake")
            accepted.close()
            self.lost(connection)

    def _refusal(self, descriptor: int) -> Response | None:
        """What a new connection with this file descriptor is told, if it is one too many."""
        most = self.limits.max_connections
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(self._connections) - len(self._refusing) >= most:
            self.ended("max_connections")
            text = f"the server takes at most {most:,} connections (max_connections)"
            why = Refused.MAX_CONNECTIONS
        elif files != resource.RLIM_INFINITY and descriptor >= files - _RESERVE:
            # Descriptors are numbered from below, so this one tells how many are in use.
            self.ended("descriptors")
            text = f"the server may open at most {files:,} files (RLIMIT_NOFILE), connections too"
            why = Refused.DESCRIPTORS
        else:
            return None
        self._metrics.refusals.labels(why).inc()
        return refusal(OverloadedError(f"{text}; try again later", why=why))

    async def _look(self) -> None:
        """End what is late, now and again."""
        while True:
            await asyncio.sleep(self._tick)
            now = time.monotonic()
            for connection in list(self._connections):
                try:
                    connection.check(now)
                except Exception:
                    _log.exception("a connection could not be ended in time")
                    with suppress(Exception):
                        connection.abort()
