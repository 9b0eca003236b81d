"""HTTP/1.1 (RFC 9112) for the REST service: a server and its connections.

httptools parses, strictly: anything that two readers could understand in two ways is refused. Every
wait for a client has a timeout, which the server checks now and then. If connections or file
descriptors run out, the connection that has waited longest for its client makes room for a new one.
"""

import asyncio
import logging
import re
import resource
import socket
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from itertools import chain
from math import inf
from ssl import SSLContext
from typing import Any, Generic, TypeVar, cast

import httptools

from parity_models.errors import UserError
from parity_models.serving.access import HEALTH, METRICS
from parity_models.serving.errors import (
    AbandonedError,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    Refused,
    RefusedError,
    RequestError,
)
from parity_models.serving.limits import Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.rest import Headers, Request, Response, Rest
from parity_models.serving.rest_codec import HEAD

_log = logging.getLogger(__name__)

MAX_HEAD = 64 * 2**10
"""Approximate limit, in bytes, of a request's line and headers."""

MAX_PIPELINED, _PAUSE = 64, 4
"""Maximum number of pipelined requests that wait for an answer, and the number at which their
connection is no longer read."""

GRACE, LAST_MOMENT = 5, 0.2
"""Seconds that a stopping server gives clients for the rest of a message, and for one that is on
its way already."""

_SMALL, _DROPPED = 64 * 2**10, 2**20
"""Bytes of a body, refused by its head or by its first bytes, that are read and dropped to keep the
connection."""

_JOINED = 64 * 2**10
"""Bytes of an answer that are copied into one piece with its head, which costs less than two."""

_SPARE = 16
"""Connections beyond the limit for questions about health and metrics, if all others are busy."""

_PARTING, _LINGER = 0.5, 5.0
"""Seconds that a client has to close its side of a connection that ends; _LINGER if it may still
send a refused body. Closing early resets the connection, and the client loses the response."""

_PROGRESS = 16 * 2**10
"""Bytes of unread answers that a client has to take in each write timeout."""

_BACKLOG = 2048
"""Connections that may wait to be accepted."""

_RESERVE = 32
"""File descriptors that connections leave to the rest of the server, above all its workers."""

_RANKS = {"idle_timeout": 0, "head_timeout": 1, "body_timeout": 2}
"""The order in which connections that wait for their clients make room for others."""

_RETRY, _TICK = 0.2, 0.25
"""Seconds after which a server without file descriptors accepts again, and between two checks for
late connections."""

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}
_STATUS_LINES[AbandonedError.status] = b"HTTP/1.1 499 Client Closed Request"

_HOST = re.compile(r"(\[[0-9A-Fa-fv:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")
"""A valid Host header (RFC 3986, sections 3.2.2 and 3.2.3)."""


class Connection(ABC, asyncio.Protocol):
    """A connection of a ConnectionServer.

    With `refused`, this error answers every request except those for health and metrics. `peer` is
    the client's address, `opening` the task that makes the connection, until it is made.
    """

    _transport: asyncio.Transport

    def __init__(self, peer: str, refused: RequestError | None) -> None:
        self.peer = peer
        self.opening: asyncio.Task[None] | None = None
        self._refused = refused
        self._ended = False
        """Data from the client is ignored."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is not a subclass
        self.opening = None

    @property
    @abstractmethod
    def idle(self) -> bool:
        """True if it has no request, whole or in part."""

    @property
    @abstractmethod
    def waits(self) -> tuple[int, float] | None:
        """The rank and the start of its wait for a request; None if it does not wait."""

    @abstractmethod
    def check(self, now: float) -> None:
        """End the connection if its client is late at the time `now` (monotonic)."""

    @abstractmethod
    def end(self) -> None:
        """End it once everything written is sent."""

    def abort(self) -> None:
        """End it at once."""
        self._ended = True
        if self.opening is not None:
            self.opening.cancel()
        else:
            self._transport.abort()


AnyConnection = TypeVar("AnyConnection", bound=Connection)


class HttpConnection(Connection):
    """A connection of `server`: bytes in, requests out, answers in their order."""

    def __init__(self, server: "HttpServer", peer: str, refused: RequestError | None) -> None:
        super().__init__(peer, refused)
        self._server = server
        self._rest = server.rest
        self._is_local = peer == "::1" or peer.startswith("127.")
        # The request that arrives
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._head = 0
        """Bytes since the last piece of a body: of a head, or of trailers."""
        self._begun = self._upgrades = False
        self._arriving: Request | None = None
        # Requests that wait for their answers
        self._waiting: deque[Request] = deque()
        self._busy: Request | None = None
        self._task: asyncio.Task[None] | None = None
        # The connection
        self._lingers = False
        """The client may still be sending a body that was refused."""
        self._reading = True
        self._writable = True
        self._unread, self._unread_since = 0, 0.0
        self._requests = 0
        self._wait: tuple[str, int] = ("head_timeout", 0)
        """The limit that bounds the wait for the client, and for which request."""
        self._wait_since, self._closes = time.monotonic(), inf
        self._retry_at = 0.0
        """The time at which a client whose large request was refused may ask again."""

    # Callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._wait_since = time.monotonic()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended, self._closes = True, inf
        self._set_unread(0)
        if self._task is not None:
            self._task.cancel()
        if self._arriving is not None:
            self._rest.abandoned(self._arriving)
        for request in (self._arriving, self._busy, *self._waiting):
            if request is not None:
                request.release()
        self._arriving = self._busy = None
        self._waiting.clear()
        del self._parser  # a cycle, which only a garbage collection would end
        self._server.lost(self)

    def data_received(self, data: bytes) -> None:
        while data and not self._ended:
            self._head += len(data)
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                # The client offered another protocol, which is ignored. The parser has stopped
                # after the head: a new one reads the body.
                data = self._framing() + data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError as error:
                self._unreadable(error)
        if self._begun and self._head > MAX_HEAD and not self._ended:
            self._refuse(_head_too_long())

    def pause_writing(self) -> None:
        self._writable = False
        self._set_unread(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._writable = True
        self._set_unread(0)
        self._answer_next()

    # Called by the server

    @property
    def idle(self) -> bool:
        return not (self._begun or self._busy or self._waiting)

    def end(self, seconds: float = _PARTING) -> None:
        """End it once everything written is sent. Read on for this many seconds, unless the client
        ends it first: otherwise data that is under way would be answered with a reset."""
        self._ended = True
        if not self._transport.is_closing():
            self._closes = time.monotonic() + seconds
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()

    @property
    def waits(self) -> tuple[int, float] | None:
        if self.opening is not None:
            return 1, self._wait_since
        if self._unread:
            return None
        rank = _RANKS.get("idle_timeout" if self.idle and self._requests else self._limit())
        return None if rank is None else (rank, self._wait_since)

    def check(self, now: float) -> None:
        if self._unread:
            unread = self._transport.get_write_buffer_size()
            if unread <= self._unread - _PROGRESS:
                self._set_unread(unread)
            elif now >= self._unread_since + self._server.limits.write_timeout:
                self._server.ended("write timeout")
                self.abort()
        elif now >= max(self._closes, self._unread_since) + self._server.limits.write_timeout:
            self.abort()
        elif now >= self._closes:
            self._transport.close()
        limit = self._limit()
        if (limit, self._requests) != self._wait:
            self._wait, self._wait_since = (limit, self._requests), now
        elif limit and now >= self._wait_since + getattr(self._server.limits, limit):
            self._late(limit)

    def _limit(self) -> str:
        """Return the limit that bounds the present wait for the client; empty if there is none."""
        if not self._reading or self._ended or self.opening is not None:
            return ""
        if self._arriving is not None:
            return "body_timeout"
        if self._begun or not self._requests:
            return "head_timeout"
        return "idle_timeout" if self._busy is None and not self._unread else ""

    def _late(self, limit: str) -> None:
        if self._begun:
            self._server.ended(limit.replace("_", " "))
            what = "headers" if self._arriving is None else "body"
            self._refuse(self._server.limits.late(f"the request's {what}", Refused(limit)))
        else:
            self._server.ended("idle timeout")
            self.end()

    def _set_unread(self, size: int) -> None:
        """Charge unread answers to the budget, and restart their timeout."""
        self._rest.budget.held += size - self._unread
        self._unread, self._unread_since = size, time.monotonic()

    # Refusals

    def _refuse(self, error: RequestError) -> None:
        """End the request that arrives, and then the connection, with this error."""
        request = self._arriving
        if request is None or request.answer is not None:  # then it was counted
            request = Request("", "", ())
        request.release()
        request.keeps, request.answer = False, self._rest.refused(request, error)
        self._lingers = True
        self._answer_next(request)

    def _unreadable(self, error: httptools.HttpParserError) -> None:
        """End the connection because the parser, or one of its callbacks, has failed."""
        cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
        if self._ended:  # the fault is after the last request that is read
            return
        if isinstance(cause, RequestError):
            self._refuse(cause)
        elif cause is not None:
            _log.error("a request could not be read", exc_info=error)
            self._refuse(InternalError("the server failed to read the request; its log says why"))
        else:
            text = f"this is not valid HTTP/1.1: {error}"
            self._refuse(InvalidRequestError(text, why=Refused.HTTP))

    # Callbacks of the parser

    def on_url(self, piece: bytes) -> None:
        if self._arriving is None:  # else it is in the head that _framing makes
            self._begun = True
            self._target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._arriving is None:  # else it is a trailer, which is ignored
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._arriving is not None:
            return
        if self._head > MAX_HEAD:  # the last bytes that came may be of the body
            size = len(self._target) + sum(map(len, chain(*self._fields))) + 4 * len(self._fields)
            if size > MAX_HEAD:
                raise _head_too_long()
        parser = self._parser
        method = parser.get_method().decode("latin-1")
        request = Request(method, self._target.decode("latin-1"), self._fields)
        request.is_local = self._is_local
        request.keeps = parser.should_keep_alive() and self._refused is None
        self._arriving = request
        self._target, self._fields, self._head = b"", [], 0
        headers, version = request.headers, parser.get_http_version()
        self._upgrades = "upgrade" in headers and parser.should_upgrade()
        size = int(headers.get("content-length", "0"))
        expects = "expect" in headers and headers["expect"].lower() == "100-continue"
        if self._refused is not None and request.target not in (*HEALTH, METRICS):
            raise self._refused
        _check_head(request, version)
        try:
            self._rest.begin(request, size)
        except RequestError as error:
            if "transfer-encoding" in headers or size > _SMALL or (expects and size):
                raise
            request.answer = self._rest.refused(request, error)
        else:
            if expects and version == "1.1":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, piece: bytes) -> None:
        self._head = 0
        request = self._arriving
        if request is not None and request.answer is None:
            request.add(piece)
            if request.peeks and len(request.body) >= HEAD:
                try:
                    self._rest.peek(request)
                except RequestError as error:
                    if int(request.headers["content-length"]) > _DROPPED:
                        raise
                    request.release()
                    request.answer = self._rest.refused(request, error)

    def on_message_complete(self) -> None:
        if self._upgrades:  # its body is still to come
            self._upgrades = False
            return
        if len(self._waiting) >= MAX_PIPELINED:
            text = f"a connection takes at most {MAX_PIPELINED} requests ahead of their answers"
            raise InvalidRequestError(text, why=Refused.PIPELINED)
        assert self._arriving is not None
        self._answer_next(self._arriving)

    def _framing(self) -> bytes:
        """Return a head with the framing headers of the request that arrives."""
        assert self._arriving is not None
        headers = self._arriving.headers
        names = [each for each in ("content-length", "transfer-encoding") if each in headers]
        lines = ["POST / HTTP/1.1", *(f"{each}: {headers[each]}" for each in names), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    # Answers

    def _answer_next(self, whole: Request | None = None) -> None:
        """Answer waiting requests, `whole` last if given, for as long as the client reads."""
        if whole is not None:
            self._arriving, self._begun, self._head = None, False, 0
            self._requests += 1
            self._ended = self._ended or not whole.keeps
            self._waiting.append(whole)
        while self._waiting and self._busy is None and self._writable:
            self._busy = request = self._waiting.popleft()
            if request.answer is not None and not request.answer.retry_after:
                self._write(request, request.answer)
            else:
                self._task = asyncio.create_task(self._answer(request))
        reads = len(self._waiting) < _PAUSE or self._ended
        if reads != self._reading and not self._transport.is_closing():
            self._reading = reads
            (self._transport.resume_reading if reads else self._transport.pause_reading)()

    async def _answer(self, request: Request) -> None:
        response = request.answer or await self._rest.answer(request)
        if response.retry_after and not self._server.closing:
            # Refuse a client that came back too early no sooner than it should have come.
            request.release()
            now = time.monotonic()
            wait = max(0.0, self._retry_at - now)
            self._retry_at = now + wait + response.retry_after
            await asyncio.sleep(wait)
        try:
            self._task = None
            self._write(request, response)
            if self._waiting or not self._reading:
                self._answer_next()
        except Exception:
            _log.exception("an answer could not be written")
            self.abort()

    def _write(self, request: Request, response: Response) -> None:
        """Write the answer to the busy request, which ends it."""
        self._busy = None
        self._wait_since = time.monotonic()
        request.release()
        if self._transport.is_closing():
            return
        more = self._waiting or self._arriving is not None
        last = not request.keeps or (self._server.closing and not more)
        content: tuple[bytes | memoryview, ...] = (response.content, *response.more)
        size = sum(map(len, content))
        lines = [_head_of(response.status, self._server.date, response.headers)]
        if request.method:
            lines.append(b"x-request-id: %b" % request.log.id.encode())
        lines.append(b"content-length: %d" % size)
        if last:
            lines.append(b"connection: close")
        elif "connection" in request.headers:
            lines.append(b"connection: keep-alive")  # HTTP/1.0 needs it
        lines.append(b"\r\n")
        head = b"\r\n".join(lines)
        if request.method == "HEAD":
            content, size = (), 0
        if size <= _JOINED:
            self._transport.write(b"".join((head, *content)))
        else:
            self._transport.writelines((head, *content))
        if last:
            self.end(_LINGER if self._lingers else _PARTING)


@lru_cache(256)
def _head_of(status: int, date: bytes, headers: Headers) -> bytes:
    """Return the part of an answer's head that many answers share."""
    return b"\r\n".join((_STATUS_LINES[status], date, *(b"%b: %b" % each for each in headers)))


def _head_too_long() -> RefusedError:
    text = f"the request's line and headers are longer than {MAX_HEAD} bytes"
    return RefusedError(text, 431, Refused.HEAD_SIZE)


def _check_head(request: Request, version: str) -> None:
    """Raise a RequestError if the head does not settle the request's host and length (RFC 9112,
    sections 3.2 and 6.1), or its version of HTTP is neither 1.0 nor 1.1."""
    is_old = version == "1.0"
    host = request.headers.get("host", "" if is_old else None)
    coding = request.headers.get("transfer-encoding")
    if request.method == "CONNECT":
        raise RefusedError("this server is not a proxy", 405, Refused.CONNECT)
    if version not in ("1.0", "1.1"):
        text = f"this server speaks HTTP/1.1, not HTTP/{version}"
    elif host is None:
        text = "an HTTP/1.1 request must have a Host header; this one has none"
    elif _HOST.fullmatch(host) is None:  # as are several, joined
        text = f"the Host header {host[:40]!r} is not a host with an optional port"
        if (hosts := len(request.values("host"))) > 1:
            text = f"a request must have one Host header; this one has {hosts}"
    elif is_old and coding is not None:
        text = "HTTP/1.0 has no Transfer-Encoding; send a Content-Length"
    elif not request.target.isascii():
        text = "the request's target is not ASCII; percent-encode it"
    elif coding is None or coding.lower() == "chunked":
        return
    else:
        text = f"transfer coding {coding[:40]!r} is not supported; send chunked or none"
        raise RefusedError(text, 501, Refused.TRANSFER_CODING)
    raise InvalidRequestError(text, why=Refused.HTTP)


def listen(host: str, port: int, *, reuse_port: bool = False, use: str = "") -> socket.socket:
    """Return a socket that listens there; port 0 is any free one. With `reuse_port`, the user's
    other processes may listen there as well, if they set it too. Raises UserError, whose message
    says its `use`, such as " for gRPC"."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, reuse_port=reuse_port
        )
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]  # Python adds the address
        raise UserError(
            f"cannot listen on {host} port {port}{use}: {why}; choose another host or port (port 0 "
            "takes any that is free)"
        ) from error


def url_of(listening: socket.socket, scheme: str = "http") -> str:
    """Return the base URL, as http://127.0.0.1:8000."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class ConnectionServer(ABC, Generic[AnyConnection]):
    """Accepts the connections of one listening socket, within `limits`, and ends those whose
    clients are late; started and stopped once.

    `tls` returns the context of each connection; None: no TLS.
    """

    def __init__(
        self, limits: Limits, metrics: Metrics, tls: Callable[[], SSLContext] | None = None
    ) -> None:
        self.limits = limits
        self.closing = False
        """Every answer is the last of its connection."""
        self.date = b""
        """The header with the current date."""
        self._metrics = metrics
        self._tls = tls
        self._connections: set[AnyConnection] = set()
        self._left = asyncio.Event()
        """Set whenever a connection is over."""
        self._acceptor: asyncio.Task[None] | None = None
        """None before it is started."""
        self._fitting: float = inf
        """Connections that descriptors allow for, as far as the last tick has shown."""

    @abstractmethod
    def connect(self, peer: str, refused: RequestError | None) -> AnyConnection:
        """Return a connection, before it is made."""

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    def serve(self, listening: socket.socket) -> None:
        """Serve the connections of this socket, from now on, on the running event loop."""
        self._socket = listening
        listening.setblocking(False)
        self._set_date()
        self._acceptor = asyncio.create_task(self._accept())
        self._reaper = asyncio.create_task(self._reap())

    async def leave(self) -> None:
        """Accept the backlog, then nothing more; every answer is the last of its connection."""
        self.closing = True
        if self._acceptor is None or self._socket.fileno() < 0:
            return
        self._acceptor.cancel()
        await asyncio.wait((self._acceptor,))
        with suppress(OSError):  # none is left, or no descriptor for one
            while True:  # closing the socket would reset the connections in the backlog
                accepted, address = self._socket.accept()
                self._on_accept(accepted, address[0])
        self._socket.close()

    async def stop(self, grace: float = GRACE) -> None:
        """Leave, and end all connections: idle ones after a moment, the others after their answers,
        or `grace` seconds."""
        await self.leave()
        if self._acceptor is None:
            return
        try:
            await self._emptied(LAST_MOMENT)
            for connection in list(self._connections):
                if connection.opening is not None:  # a handshake may take long
                    connection.abort()
                elif connection.idle:
                    connection.end()
            await self._emptied(grace)
            for connection in list(self._connections):
                connection.abort()
            await self._emptied(inf)
        finally:
            self._reaper.cancel()

    async def _emptied(self, seconds: float) -> None:
        """Wait until all connections are closed, for this many seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == inf else seconds):
                while self._connections:
                    self._left.clear()
                    await self._left.wait()

    # For connections

    def lost(self, connection: AnyConnection) -> None:
        """Forget a connection that is over."""
        self._connections.discard(connection)
        self._left.set()

    def ended(self, reason: str) -> None:
        """Count a connection that a limit has ended."""
        self._metrics.connections_ended.labels(reason).inc()

    # Accepting

    async def _accept(self) -> None:
        while True:
            try:
                accepted, address = await asyncio.get_running_loop().sock_accept(self._socket)
            except ConnectionAbortedError:
                continue
            except OSError as error:  # out of descriptors or of memory for sockets
                _log.warning("no connection can be accepted for now: %s", error.strerror)
                self.ended("descriptors")
                await asyncio.sleep(0 if self._make_room() else _RETRY)
                continue
            try:
                self._on_accept(accepted, address[0])
            except Exception:  # the next client can be accepted all the same
                _log.exception("a connection could not be accepted")
                accepted.close()

    def _on_accept(self, accepted: socket.socket, peer: str) -> None:
        accepted.setblocking(False)
        refused, why = None, Refused.MAX_CONNECTIONS
        most: float = self.limits.max_connections
        text = f"the server takes at most {most:,} connections (max_connections)"
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        beyond = -1 if files == resource.RLIM_INFINITY else accepted.fileno() - files + _RESERVE
        if beyond >= 0:
            # Until a connection ends, descriptors are numbered from 0 up, without a gap.
            self._fitting = max(0, len(self._connections) - beyond)
        if self._fitting < most:
            text = f"the server may open at most {files:,} files and connections (RLIMIT_NOFILE)"
            most, why = self._fitting, Refused.DESCRIPTORS
        if len(self._connections) >= most:
            self.ended(why)
            while len(self._connections) >= most and self._make_room():
                pass
            if len(self._connections) >= most:
                if len(self._connections) >= most + _SPARE:
                    accepted.close()
                    return
                refused = OverloadedError(f"{text}, and all are busy; try again later", why=why)
        connection = self.connect(peer.removeprefix("::ffff:"), refused)
        self._connections.add(connection)
        connection.opening = asyncio.create_task(self._open(accepted, connection))

    def _make_room(self) -> bool:
        """End a connection that waits for its client: one of the address with the most of them,
        idle ones first, then the longest waiting. Return False if none waits."""
        waits = {each: wait for each in self._connections if (wait := each.waits) is not None}
        if not waits:
            return False
        peers = Counter(each.peer for each in waits)
        last = min(waits, key=lambda each: (-peers[each.peer], waits[each]))
        self._connections.discard(last)
        last.abort()
        return True

    async def _open(self, accepted: socket.socket, connection: AnyConnection) -> None:
        """Make a connection of an accepted socket."""
        tls: dict[str, Any] = {}
        try:
            if self._tls is not None:
                tls = {"ssl": self._tls(), "ssl_handshake_timeout": self.limits.head_timeout}
                # Until then, the client may read its last answer.
                tls["ssl_shutdown_timeout"] = self.limits.write_timeout
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, accepted, **tls
            )
        except (Exception, asyncio.CancelledError) as error:
            # Clients without TLS, or with another version, are an everyday event.
            level = logging.DEBUG if tls else logging.WARNING
            _log.log(level, "a connection broke as it was accepted: %r", error)
            if tls:
                self.ended("handshake")
            accepted.close()
            self.lost(connection)

    # Now and then

    async def _reap(self) -> None:
        """End late connections, and count unread bytes, until cancelled."""
        while True:
            await asyncio.sleep(_TICK)
            self._fitting = inf
            self._set_date()
            now = time.monotonic()
            for connection in list(self._connections):
                try:
                    connection.check(now)
                except Exception:
                    _log.exception("a connection could not be ended in time")
                    with suppress(Exception):
                        connection.abort()

    def _set_date(self) -> None:
        self.date = f"date: {formatdate(usegmt=True)}".encode()


class HttpServer(ConnectionServer[HttpConnection]):
    """Serves `rest` on one listening socket."""

    def __init__(self, rest: Rest, tls: Callable[[], SSLContext] | None = None) -> None:
        super().__init__(rest.limits, rest.metrics, tls)
        self.rest = rest

    def connect(self, peer: str, refused: RequestError | None) -> HttpConnection:
        return HttpConnection(self, peer, refused)
