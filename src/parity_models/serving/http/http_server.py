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

from parity_models.errors import UserError
from parity_models.serving.errors import OverloadedError
from parity_models.serving.http.connection import REFUSED_TIMEOUT, HttpConnection
from parity_models.serving.metrics import HTTP, Metrics
from parity_models.serving.refusals import Refused
from parity_models.serving.rest.messages import Response, refusal
from parity_models.serving.rest.service import Rest

_log = logging.getLogger(__name__)

GRACE = 5
"""Seconds that a stopping server gives clients to send or fetch the rest of a message."""

LAST_MOMENT = 0.2
"""Seconds for which a stopping server waits for requests that are on their way already."""

_BACKLOG = 2048
"""Connections that may wait to be accepted."""

_ACCEPTS = 64
"""Connections accepted in a row before the others have their turn."""

_REFUSED = 16
"""Connections beyond the limit that are answered at a time; further ones wait to be accepted."""

_RESERVE = 32
"""File descriptors that connections leave to the rest of the server: its workers, above all."""

_RETRY = 0.2
"""Seconds after which a server without file descriptors accepts again."""

_TICK = 0.25
"""Seconds between two checks for late connections, at most."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; port 0 is any free one. Raises UserError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]  # what Python adds says it once more
        raise UserError(
            f"cannot listen on {host} port {port}: {why}; choose another host or port (port 0 "
            "takes any that is free)"
        ) from error


def url_of(listening: socket.socket, scheme: str = "http") -> str:
    """Return the base URL, as http://127.0.0.1:8000."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class HttpServer:
    """Serves `rest` on one listening socket, within its limits; started and stopped once.

    With `tls`, over TLS: it is called for the context of each connection.
    """

    def __init__(
        self, rest: Rest, metrics: Metrics, tls: Callable[[], SSLContext] | None = None
    ) -> None:
        self.rest = rest
        self.limits = rest.limits
        self.closing = False
        """Whether every answer is the last of its connection."""
        self.received = self.sent = 0
        """Bytes from clients and to them, since they were last added to the metrics."""
        self._metrics = metrics
        self._tls = tls
        self._connections: set[HttpConnection] = set()
        self._refusing: set[HttpConnection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._accepting = False
        self._out_of_descriptors = False
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
        """The number of open connections."""
        return len(self._connections)

    def start(self, listening: socket.socket) -> None:
        """Serve the connections of this socket, from now on, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._socket = listening
        listening.setblocking(False)
        self._accept_again()
        self._reaper = self._loop.create_task(self._reap())

    def drain(self) -> None:
        """Make every answer the last of its connection, from now on."""
        self.closing = True

    async def stop(self, grace: float = GRACE) -> None:
        """Accept no more than those that wait for it, and end all connections: idle ones after a
        moment, the others after the answers that are under way, or `grace` seconds."""
        self.closing = self._stopping = True
        self._pause()
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
            self._reaper.cancel()
            self._count_bytes()

    async def _opened(self) -> None:
        """Wait for connections that are being made; for TLS, as long as for an idle client."""
        if self._opening:
            _, unmade = await asyncio.wait(
                self._opening, timeout=None if self._tls is None else LAST_MOMENT
            )
            for task in unmade:
                task.cancel()

    async def _emptied(self, seconds: float) -> bool:
        """Wait for so long until there are no connections; return whether there are none."""
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
        """Forget a connection that is over."""
        self._connections.discard(connection)
        self._refusing.discard(connection)
        if not self._connections:
            self._empty.set()
        if not self._accepting and not self._out_of_descriptors:
            self._accept_again()

    def ended(self, reason: str) -> None:
        """Count a connection that a limit has ended."""
        self._metrics.connections_ended.labels(reason).inc()

    # Accepting

    def _accept_again(self) -> None:
        self._out_of_descriptors = False
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
                self._out_of_descriptors = True
                self._loop.call_later(_RETRY, self._accept_again)
                return
            self._on_accept(accepted)

    def _accept_backlog(self) -> None:
        """Accept all that wait, as closing the socket would reset their connections."""
        with suppress(OSError):  # none is left, or no descriptor for one
            for _ in range(_BACKLOG):
                accepted, _ = self._socket.accept()
                self._on_accept(accepted)

    def _on_accept(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        refused = self._refusal(accepted.fileno())
        connection = HttpConnection(self, refused)
        self._connections.add(connection)
        self._empty.clear()
        if refused is not None:
            self._refusing.add(connection)
        task = self._loop.create_task(self._open(accepted, connection, refused is not None))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(
        self, accepted: socket.socket, connection: HttpConnection, refused: bool
    ) -> None:
        """Make a connection of an accepted socket."""
        tls: dict[str, Any] = {}
        try:
            if self._tls is not None:
                timeout = REFUSED_TIMEOUT if refused else self.limits.head_timeout
                tls = {"ssl": self._tls(), "ssl_handshake_timeout": timeout}
                tls["ssl_shutdown_timeout"] = GRACE
            await self._loop.connect_accepted_socket(lambda: connection, accepted, **tls)
        except (Exception, asyncio.CancelledError) as error:
            # Clients that speak no TLS, or another one, are an everyday event.
            level = logging.DEBUG if tls else logging.WARNING
            _log.log(level, "a connection broke as it was accepted: %r", error)
            if tls:
                self.ended("handshake")
            accepted.close()
            self.lost(connection)

    def _refusal(self, descriptor: int) -> Response | None:
        """The answer to a new connection with this file descriptor, if it is one too many."""
        most = self.limits.max_connections
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(self._connections) - len(self._refusing) >= most:
            text = f"the server takes at most {most:,} connections (max_connections)"
            why = Refused.MAX_CONNECTIONS
        elif files != resource.RLIM_INFINITY and descriptor >= files - _RESERVE:
            # Descriptors are numbered from below, so this one tells how many are in use.
            text = f"the server may open at most {files:,} files (RLIMIT_NOFILE), connections too"
            why = Refused.DESCRIPTORS
        else:
            return None
        self.ended(why)
        self._metrics.refusals.labels(why).inc()
        return refusal(OverloadedError(f"{text}; try again later", why=why))

    # Now and then

    async def _reap(self) -> None:
        """End late connections, for ever, and count the bytes of all."""
        while True:
            await asyncio.sleep(self._tick)
            self._count_bytes()
            now = time.monotonic()
            for connection in list(self._connections):
                try:
                    connection.check(now)
                except Exception:
                    _log.exception("a connection could not be ended in time")
                    with suppress(Exception):
                        connection.abort()

    def _count_bytes(self) -> None:
        """Add the bytes since the last time to the metrics, which costs more than a sum."""
        self._metrics.received.labels(HTTP).inc(self.received)
        self._metrics.sent.labels(HTTP).inc(self.sent)
        self.received = self.sent = 0
