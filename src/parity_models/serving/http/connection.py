"""One client's connection over HTTP/1.1 (RFC 9112): bytes in, requests out, answers in their order.

httptools parses, strictly: anything that two readers could understand in two ways is refused.
Nothing that a client does, or leaves undone, is waited for without a limit: the server calls
`check` on every connection now and then, which ends those that are late.
"""

import asyncio
import logging
import re
import socket
import time
from collections import deque
from contextlib import aclosing
from enum import Enum, auto
from http import HTTPStatus
from ipaddress import ip_address
from math import inf
from typing import TYPE_CHECKING, cast

import httptools

from parity_models.serving.errors import (
    AbandonedError,
    ConnectError,
    HeadTooLargeError,
    InvalidRequestError,
    LateRequestError,
    RequestError,
    TransferCodingError,
)
from parity_models.serving.refusals import Refused
from parity_models.serving.rest.messages import Body, Request, Response, error_response, request_of

if TYPE_CHECKING:
    from parity_models.serving.http.http_server import HttpServer

_log = logging.getLogger(__name__)

MAX_HEAD = 64 * 2**10
"""Approximate limit, in bytes, of a request's line and headers."""

MAX_PIPELINED = 64
"""Requests of one connection that may wait for the answers to those before them."""

REFUSED_TIMEOUT = 0.5
"""Seconds that a connection beyond the limit has for its headers, and for TLS's handshake."""

_PAUSE = 4
"""Waiting requests at which a connection is no longer read."""

_SMALL = 64 * 2**10
"""Bytes of a refused request's body that are read and dropped to keep its connection."""

_SILENCE = 0.1
"""Seconds after which a connection beyond the limit is refused even if it has asked nothing."""

_LINGER = 5.0
"""Seconds for which data from a refused client is dropped, so that it reads the answer."""

_PARTING = 0.5
"""Seconds that an idle client has to close its side of a connection that ends."""

_ROUND_TRIPS = (0.001, 0.005, 0.02)
"""Seconds after a half-close at which to look for a reset: within a machine room, and further away.
After that, every `check` looks."""

_PROGRESS = 16 * 2**10
"""Bytes of unread answers that a client has to take in each write timeout."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}
_STATUS_LINES[AbandonedError.status] = b"HTTP/1.1 499 Client Closed Request\r\n"

_HOST = re.compile(r"(\[[0-9A-Fa-fv:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")
"""A valid Host header (RFC 3986, sections 3.2.2 and 3.2.3)."""

_NO_HEAD = Request("", "", {})
"""Stands for a request whose head has not been read."""


class ConnectionState(Enum):
    """The event that a connection waits for; each but ANSWER, which the server owes, times out."""

    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    REQUEST = auto()
    CLOSE = auto()


class _Exchange:
    """A request that arrives, waits for its turn, or is being answered.

    `keeps`: its connection goes on after the answer. `answer` is set where its head was enough to
    refuse it. `expects`: its client waits for 100 Continue before it sends the body. `upgrades`: it
    offers another protocol, and its body has not been read.
    """

    __slots__ = ("answer", "expects", "keeps", "request", "upgrades")

    def __init__(self, request: Request, keeps: bool, answer: Response | None = None) -> None:
        self.request = request
        self.keeps = keeps
        self.answer = answer
        self.expects = False
        self.upgrades = False


class _StopParsing(Exception):  # noqa: N818, as it is no error
    """Raised in the parser's callbacks: ignore the rest of the client's data."""


class HttpConnection(asyncio.Protocol):
    """A connection of `server`.

    With `refused`, that is its one answer, to anything but the question whether the server is
    alive.
    """

    def __init__(self, server: "HttpServer", refused: Response | None = None) -> None:
        self._server = server
        self._rest = server.rest
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        # The request that arrives
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._head = 0
        """Bytes since the last piece of a body: of a head, or of trailers."""
        self._begun = False
        self._arriving: _Exchange | None = None
        # Those that are to be answered
        self._waiting: deque[_Exchange] = deque()
        self._busy: _Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        # The connection
        self._ended = False
        """Whether data from the client is ignored."""
        self._half_closed = False
        self._lingers = False
        self._dropped = 0
        self._reading = True
        self._writable = asyncio.Event()
        self._writable.set()
        self._unread = 0
        self._unread_due = inf
        limits = server.limits
        head = limits.head_timeout if refused is None else min(limits.head_timeout, REFUSED_TIMEOUT)
        self._timeouts = {
            ConnectionState.HEAD: head,
            ConnectionState.BODY: limits.body_timeout,
            ConnectionState.ANSWER: inf,
            ConnectionState.REQUEST: limits.idle_timeout,
        }
        self._set_state(ConnectionState.HEAD)

    # Callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._local = _is_local(transport.get_extra_info("peername"))
        if self._refused is not None:
            self._loop.call_later(_SILENCE, self._refuse_silent, self._refused)

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = True
        self._state, self._due = ConnectionState.CLOSE, inf
        self._set_unread(0)
        if self._task is not None:
            self._task.cancel()
        self._abandon_arriving()
        del self._parser  # a cycle, which only a garbage collection would end
        if self._busy is not None:
            self._waiting.append(self._busy)
        for exchange in self._waiting:
            exchange.request.release()
        self._waiting.clear()
        self._busy = None
        self._server.lost(self)

    def data_received(self, data: bytes) -> None:
        self._server.received += len(data)
        if self._ended:  # clients may send on for a while, but not without end
            self._dropped += len(data)
            if self._dropped > 2 * self._server.limits.max_body:
                self.abort()
            return
        while data and not self._ended:
            self._head += len(data)
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                # Another protocol was offered; HTTP/1.1 goes on, as it may. The parser has given
                # up after the head: a new one reads the body.
                data = self._framing() + data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError as error:
                self._malformed(error)
                break
        if self._begun and self._head > MAX_HEAD and not self._ended:
            self._fail(_head_too_long())
        self._update_state()

    def eof_received(self) -> bool:
        """Handle the end of the client's data; return whether it is still to get answers.

        TLS here has no connections that are closed on one side.
        """
        if not self._transport.can_write_eof():
            return False
        last = self._waiting[-1] if self._waiting else self._busy
        if last is None or self._half_closed:
            return last is not None
        self._half_closed = self._ended = True
        last.keeps = False
        self._abandon_arriving()
        # It may have closed the connection just as well. Then its system resets it as soon as
        # something comes, such as this, which clients drop that did not ask for it (RFC 9110,
        # section 15.2.1), and which HTTP/1.0 does not have.
        if self._parser.get_http_version() != "1.0":
            self._transport.write(_CONTINUE)
        for seconds in _ROUND_TRIPS:
            self._loop.call_later(seconds, self._look_for_reset)
        self._update_state()
        return True

    def pause_writing(self) -> None:
        self._writable.clear()
        self._set_unread(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._writable.set()
        self._set_unread(0)
        self._answer_next()
        self._update_state()

    # Called by the server

    @property
    def idle(self) -> bool:
        """Whether it has no request, whole or in part."""
        return not (self._begun or self._busy or self._waiting)

    def close(self) -> None:
        """End it, once everything written is sent."""
        self._close_within(self._server.limits.write_timeout)
        self._transport.close()

    def half_close(self) -> None:
        """End it, but read on: data that crosses the end would be answered with a reset."""
        self._close_within(_PARTING)
        if not self._transport.can_write_eof():
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.write_eof()

    def abort(self) -> None:
        """End it at once."""
        self._ended = True
        self._transport.abort()

    def check(self, now: float) -> None:
        """End the connection if what it waits for is late at the time `now` (monotonic)."""
        if self._half_closed:
            self._look_for_reset()
        if now >= self._unread_due:
            unread = self._transport.get_write_buffer_size()
            if unread > self._unread - _PROGRESS:
                self._server.ended("write timeout")
                self.abort()
            else:
                self._set_unread(unread)
        if now >= self._due:
            self._late()
            self._update_state()

    # Time

    def _set_state(self, state: ConnectionState) -> None:
        self._state = state
        self._due = time.monotonic() + self._timeouts[state]

    def _update_state(self) -> None:
        """Start the timeout of what the connection waits for now, unless it is running."""
        if not self._reading or self._ended:
            state = ConnectionState.ANSWER
        elif self._arriving is not None:
            state = ConnectionState.BODY
        elif self._begun:
            state = ConnectionState.HEAD
        else:
            state = ConnectionState.REQUEST if self._busy is None else ConnectionState.ANSWER
        if state is not self._state and self._state is not ConnectionState.CLOSE:
            self._set_state(state)

    def _close_within(self, seconds: float) -> None:
        """Ignore the client from now on, and abort if it has not closed its side by then."""
        self._ended = True
        self._state, self._due = ConnectionState.CLOSE, time.monotonic() + seconds

    def _late(self) -> None:
        state = self._state
        if self._refused is not None and state is ConnectionState.HEAD:
            self._refuse(self._refused)
        elif state is ConnectionState.BODY:
            self._fail_late("body", Refused.BODY_TIMEOUT)
        elif state is ConnectionState.HEAD and self._begun:
            self._fail_late("headers", Refused.HEAD_TIMEOUT)
        elif state is ConnectionState.CLOSE:
            self.abort()
        else:
            self._server.ended("idle timeout")
            self.half_close()

    def _fail_late(self, what: str, limit: Refused) -> None:
        self._server.ended(limit.replace("_", " "))
        seconds = getattr(self._server.limits, limit)
        text = f"the request's {what} did not come whole within the {limit} of {seconds:g} s"
        self._fail(LateRequestError(text, why=limit))

    def _set_unread(self, size: int) -> None:
        """Count the bytes of answers that the client has not read; it has to take some in time."""
        self._rest.budget.give_back(self._unread)
        self._rest.budget.hold(size)
        self._unread = size
        self._unread_due = time.monotonic() + self._server.limits.write_timeout if size else inf

    def _look_for_reset(self) -> None:
        """End a half-closed connection whose client has gone altogether. The loop, which has
        nothing to read there, would only notice when it writes."""
        if not self._transport.is_closing():
            here: socket.socket = self._transport.get_extra_info("socket")
            if here.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.abort()

    # Refusals

    def _refuse(self, answer: Response, *, whole: bool = False) -> None:
        """Make this answer the connection's last, whatever else the client sends; `whole`: it has
        begun nothing that it did not end."""
        request = _NO_HEAD if self._arriving is None else self._arriving.request
        request.release()
        self._arriving = None
        self._begun = False
        self._take(_Exchange(request, keeps=False, answer=answer), whole=whole)

    def _fail(self, error: RequestError) -> None:
        """Let the request that arrives end with this error, and the connection with it."""
        exchange = self._arriving  # which was counted already if it has an answer
        known = exchange is not None and exchange.answer is None
        request = exchange.request if exchange is not None and known else _NO_HEAD
        self._refuse(self._rest.refused(request, error))

    def _malformed(self, error: httptools.HttpParserError) -> None:
        if self._ended:  # what is wrong comes after the last request that is read
            return
        if isinstance(error, httptools.HttpParserCallbackError):
            _log.error("a request could not be read", exc_info=error)
            text = "the server failed to read the request; its log says why"
            self._refuse(error_response(text, 500))
            return
        text = f"this is not HTTP/1.1 as it should be: {error}"
        self._fail(InvalidRequestError(text, why=Refused.HTTP))

    def _refuse_silent(self, refused: Response) -> None:
        """Refuse a connection that has asked nothing yet: others wait for its place."""
        if self.idle and not self._ended:
            self._refuse(refused, whole=True)

    def _abandon_arriving(self) -> None:
        """Forget a request that will never be whole."""
        if self._arriving is not None:
            self._rest.abandoned(self._arriving.request)
            self._arriving.request.release()
            self._arriving = None
        self._begun = False

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        self._begun = True
        self._target = b""
        self._fields = []

    def on_url(self, piece: bytes) -> None:
        self._target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._arriving is None:  # else it is a trailer, which is ignored
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._arriving is not None:  # the head that _framing makes
            return
        if self._head > MAX_HEAD and self._head_size() > MAX_HEAD:
            self._fail(_head_too_long())
            raise _StopParsing
        parser = self._parser
        method = parser.get_method().decode("latin-1")
        request = request_of(method, self._target.decode("latin-1"), self._fields)
        request.local = self._local
        self._arriving = exchange = _Exchange(request, parser.should_keep_alive())
        self._head = 0
        headers = request.headers
        exchange.upgrades = "upgrade" in headers and parser.should_upgrade()
        size = int(headers.get("content-length", "0"))
        exchange.answer = self._refusal(exchange, size)
        expects = "expect" in headers and headers["expect"].lower() == "100-continue"
        if exchange.answer is not None:
            if "transfer-encoding" in headers or size > _SMALL or (expects and size):
                self._refuse(exchange.answer)
                raise _StopParsing
        elif expects and parser.get_http_version() != "1.0":
            exchange.expects = True
            self._proceed()

    def on_body(self, piece: bytes) -> None:
        self._head = 0
        exchange = self._arriving
        if exchange is not None and exchange.answer is None:
            try:
                exchange.request.body.add(piece)
            except RequestError as error:
                self._fail(error)
                raise _StopParsing from error

    def on_message_complete(self) -> None:
        exchange = self._arriving
        assert exchange is not None
        if exchange.upgrades:  # its body is still to come
            exchange.upgrades = False
            return
        if len(self._waiting) >= MAX_PIPELINED:
            text = f"a connection takes at most {MAX_PIPELINED} requests ahead of their answers"
            self._fail(InvalidRequestError(text, why=Refused.PIPELINED))
            raise _StopParsing
        self._arriving = None
        self._begun = False
        self._head = 0
        self._take(exchange)

    def _framing(self) -> bytes:
        """A head that says of a body what the request that arrives says."""
        assert self._arriving is not None
        headers = self._arriving.request.headers
        lines = ["POST / HTTP/1.1"]
        for name in ("content-length", "transfer-encoding"):
            if name in headers:
                lines.append(f"{name}: {headers[name]}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _refusal(self, exchange: _Exchange, size: int) -> Response | None:
        """The answer to a request whose head suffices to refuse it; None lets its body come."""
        request = exchange.request
        if self._refused is not None:
            exchange.keeps = False
            if request.target != "/v2/health/live":
                return self._refused
        if request.method == "CONNECT":
            self._fail(ConnectError("this is no proxy"))
            raise _StopParsing
        if unclear := self._unclear(request):
            self._fail(InvalidRequestError(unclear, why=Refused.HTTP))
            raise _StopParsing
        try:
            if not request.target.isascii():
                exchange.keeps = False
                text = "the request's target is not ASCII; percent-encode it"
                raise InvalidRequestError(text, why=Refused.HTTP)
            coding = request.headers.get("transfer-encoding", "chunked")
            if coding.lower() != "chunked":
                exchange.keeps = False
                raise TransferCodingError(
                    f"transfer coding {coding[:40]!r} is not read here; send chunked or none"
                )
            refused = self._rest.begin(request)
            if refused is None:
                request.body = Body(self._rest.limits.max_body, self._rest.budget, size)
            return refused
        except RequestError as error:
            return self._rest.refused(request, error)

    def _unclear(self, request: Request) -> str | None:
        """How a head leaves open whom the request is for, or where it ends (RFC 9112, sections 3.2
        and 6.1); None if it does not."""
        hosts = request.values("host")
        if len(hosts) > 1:
            return f"a request has one Host header, this one has {len(hosts)}"
        is_old = self._parser.get_http_version() == "1.0"
        if not hosts and not is_old:
            return "a request of HTTP/1.1 has a Host header, this one has none"
        if hosts and _HOST.fullmatch(hosts[0]) is None:
            return f"the Host header {hosts[0][:40]!r} is no host with or without a port"
        if is_old and "transfer-encoding" in request.headers:
            return "HTTP/1.0 knows no Transfer-Encoding; send a Content-Length"
        return None

    def _head_size(self) -> int:
        fields = sum(len(name) + len(value) + len(b": \r\n") for name, value in self._fields)
        return len(self._target) + fields

    # Answers

    def _take(self, exchange: _Exchange, *, whole: bool = True) -> None:
        """Answer a request now, or when its turn has come."""
        # The timeout of the next request starts when that begins.
        self._state, self._due = ConnectionState.ANSWER, inf
        if not exchange.keeps:
            self._ended = True
            self._lingers = not whole
        self._waiting.append(exchange)
        self._answer_next()

    def _answer_next(self) -> None:
        """Answer waiting requests, as far as the client reads."""
        while self._waiting and self._busy is None and self._writable.is_set():
            self._busy = exchange = self._waiting.popleft()
            if exchange.answer is not None:
                self._write(exchange, exchange.answer)
            else:
                self._task = self._loop.create_task(self._answer(exchange))
        if self._arriving is not None:
            self._proceed()
        read = len(self._waiting) < _PAUSE or self._ended
        if read != self._reading and not self._transport.is_closing():
            self._reading = read
            if read:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _proceed(self) -> None:
        """Send 100 Continue to a client that waits for it, once those before it are answered."""
        exchange = self._arriving
        if exchange is not None and exchange.expects and self._busy is None:
            exchange.expects = False
            self._transport.write(_CONTINUE)

    async def _answer(self, exchange: _Exchange) -> None:
        response = await self._rest.answer(exchange.request)
        try:
            if response.pieces is not None:
                await self._write_pieces(exchange, response)
            else:
                self._task = None
                self._write(exchange, response)
                self._answer_next()
                self._update_state()
        except Exception:
            _log.exception("an answer could not be written")
            self.abort()

    def _write(self, exchange: _Exchange, response: Response) -> None:
        """Write the answer to the request that is busy, which is over with that."""
        self._busy = None
        exchange.request.release()
        if self._transport.is_closing():
            return
        more = self._waiting or self._arriving is not None
        last = not exchange.keeps or (self._server.closing and not more)
        self._send(exchange.request, response, last)
        if last and self._lingers:
            # A client that is sending would lose an answer that comes with the connection's end.
            self._close_within(_LINGER)
            if self._transport.can_write_eof():
                self._transport.write_eof()
        elif last:
            self.close()

    async def _write_pieces(self, exchange: _Exchange, response: Response) -> None:
        """Write an answer that ends with the connection: each piece when the client has read those
        before it, so that little is kept for one that does not."""
        assert response.pieces is not None
        self._ended = True
        self._update_state()
        self._send(exchange.request, response, last=True)
        try:
            async with aclosing(response.pieces) as pieces:
                async for piece in pieces:
                    await self._writable.wait()
                    self._transport.write(piece)
                    self._server.sent += len(piece)
        except Exception:
            _log.exception("an answer could not be written")
        self._task = None
        self._busy = None
        exchange.request.release()
        self.close()

    def _send(self, request: Request, response: Response, last: bool) -> None:
        """Write a response; `last`: the connection ends with it."""
        content = response.content
        lines = [_STATUS_LINES[response.status], self._server.date]
        lines += [b"%b: %b\r\n" % header for header in response.headers]
        if request.log is not None:
            lines.append(b"x-request-id: %b\r\n" % request.log.id.encode())
        if response.pieces is None:
            lines.append(b"content-length: %d\r\n" % len(content))
        if last:
            lines.append(b"connection: close\r\n")
        elif "connection" in request.headers:
            lines.append(b"connection: keep-alive\r\n")  # HTTP/1.0 needs it
        lines.append(b"\r\n")
        if request.method == "HEAD":
            content = b""
        head = b"".join(lines)
        self._transport.writelines((head, content))
        self._server.sent += len(head) + len(content)


def _head_too_long() -> HeadTooLargeError:
    return HeadTooLargeError(f"the request's line and headers are longer than {MAX_HEAD} bytes")


def _is_local(peer: object) -> bool:
    """Return whether this peer, as sockets name them, has a loopback address."""
    try:
        address = ip_address(peer[0]) if isinstance(peer, tuple) else None
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address is not None and (mapped or address).is_loopback
