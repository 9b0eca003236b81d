"""The HTTP server: accepts connections, as many as the limits allow, and ends those that are late.

Out of connections or of file descriptors, a new client is refused with the reason, or waits to be
accepted; the clients that are there go on, and all is as before once some have left.
"""

import asyncio
import logging
import resource
import socket
import time
from contextlib import suppress
from email.utils import formatdate

from parity_models.serving.errors import OverloadedError
from parity_models.serving.http.connection import HttpConnection
from parity_models.serving.messages import Response, refusal
from parity_models.serving.metrics import Metrics
from parity_models.serving.rest import Rest

_log = logging.getLogger(__name__)

GRACE = 5
"""Seconds that a stopping server gives clients to send or fetch the rest of a message."""

LAST_MOMENT = 0.2
"""Seconds for which a stopping server waits for requests that are on their way already."""

_BACKLOG = 2048
"""Connections that may wait to be accepted."""

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
    """Serves `rest` on one listening socket, within its limits; started and stopped once."""

    def __init__(self, rest: Rest, metrics: Metrics) -> None:
        self.rest = rest
        self.limits = rest.limits
        self.closing = False
        self._metrics = metrics
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
        metrics.connections.set_function(lambda: len(self._connections))
        metrics.bytes_in_flight.set_function(lambda: rest.budget.held)

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

    async def stop(self) -> None:
        """Accept no more than those that wait for it, and end all connections: idle ones after a
        moment, the others after the answers that are under way, or some seconds."""
        self.closing = self._stopping = True
        self._pause()
        self._accept_backlog()
        self._socket.close()
        try:
            await asyncio.gather(*self._opening)
            if not await self._emptied(LAST_MOMENT):
                for connection in list(self._connections):
                    if connection.idle:
                        connection.half_close()
            if not await self._emptied(GRACE):
                for connection in list(self._connections):
                    connection.abort()
                await self._empty.wait()
        finally:
            self._looking.cancel()

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
            for _ in range(_BACKLOG):
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
        task = self._loop.create_task(self._open(accepted, connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, accepted: socket.socket, connection: HttpConnection) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, accepted)
        except Exception as error:
            _log.warning("a connection broke as it was accepted: %r", error)
            accepted.close()
            self.lost(connection)

    def _refusal(self, descriptor: int) -> Response | None:
        """What a new connection with this file descriptor is told, if it is one too many."""
        most = self.limits.max_connections
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if len(self._connections) - len(self._refusing) >= most:
            self.ended("max_connections")
            text = f"the server takes at most {most:,} connections (max_connections)"
        elif files != resource.RLIM_INFINITY and descriptor >= files - _RESERVE:
            # Descriptors are numbered from below, so this one tells how many are in use.
            self.ended("descriptors")
            text = f"the server may open at most {files:,} files (RLIMIT_NOFILE), connections too"
        else:
            return None
        return refusal(OverloadedError(f"{text}; try again later", retry_after=1.0))

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
                    connection.abort()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def url_of(listening: socket.socket) -> str:
    """The base URL, as http://127.0.0.1:8000."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
