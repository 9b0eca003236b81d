"""One client's connection over HTTP/1.1 (RFC 9112): bytes in, requests to the service, answers out.

httptools parses, strictly: whatever two readers could understand in two ways is refused. Requests
are answered one after another, in their order. Nothing that a client does, or leaves undone, is
waited for without a limit: the server looks at every connection now and then, and `check` ends
those that are late.
"""

import asyncio
import logging
import socket
import time
from collections import deque
from enum import Enum, auto
from http import HTTPStatus
from math import inf
from typing import Protocol, cast

import httptools

from parity_models.serving.errors import (
    AbandonedError,
    InvalidRequestError,
    LateRequestError,
    RequestError,
)
from parity_models.serving.limits import Limits
from parity_models.serving.messages import Body, Request, Response, error_response, request_of
from parity_models.serving.rest import Rest

_log = logging.getLogger(__name__)

MAX_HEAD = 64 * 2**10
"""Bytes that a request's line and headers may have, about."""

MAX_PIPELINED = 64
"""Requests of one connection that may wait for the answers to those before them."""

_PAUSE = 4
"""Requests that wait when no more of a connection is read for the time being."""

_SMALL = 64 * 2**10
"""Bytes of the body of a refused request that are read and dropped to keep its connection."""

_SILENCE = 0.1
"""Seconds after which a connection that is one too many is told so, if it has asked nothing."""

_REFUSED_TIMEOUT = 0.5
"""Seconds that such a connection has for its headers."""

_LINGER = 5.0
"""Seconds for which what a refused client still sends is dropped, so that it reads the answer."""

_PARTING = 0.5
"""Seconds that an idle client has to close its side of a connection that ends."""

_PROGRESS = 16 * 2**10
"""Bytes of unread answers that a client has to take in each write timeout."""

_JOIN = 64 * 2**10
"""Bytes of content that are copied to be sent in one piece with their head."""

_ROUND_TRIP = 0.02
"""Seconds after which most clients' systems have answered what was sent."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}
_STATUS_LINES[AbandonedError.status] = b"HTTP/1.1 499 Client Closed Request\r\n"


_NONE = Request("", "", {})
"""What stands for a request whose head is not there."""


class Connections(Protocol):
    """What a connection needs of its server."""

    rest: Rest
    limits: Limits
    closing: bool
    """Is every answer to be the last of its connection?"""

    @property
    def date(self) -> bytes:
        """The header with the current date."""

    def lost(self, connection: "HttpConnection") -> None:
        """The connection is over."""

    def ended(self, reason: str) -> None:
        """A limit has ended a connection."""


class _Waits(Enum):
    """What a connection waits for."""

    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    REQUEST = auto()
    CLOSE = auto()


class _Incoming:
    """A request that arrives, waits for its turn, or is being answered."""

    __slots__ = ("answer", "body", "expects", "keeps", "request", "upgrades")

    def __init__(self, request: Request, keeps: bool) -> None:
        self.request = request
        self.keeps = keeps
        self.body: Body | None = None
        self.answer: Response | None = None
        self.expects = False
        self.upgrades = False


class _Enough(Exception):
    """Nothing further of what the client sends is looked at."""


class HttpConnection(asyncio.Protocol):
    """A connection of `server`; where `refused` says why, it gets that as its one answer (only
    the question whether the server is alive is answered all the same)."""

    def __init__(self, server: Connections, refused: Response | None = None) -> None:
        self._server = server
        self._rest = server.rest
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._head = 0
        """Bytes that came since there was a piece of a body: of a head, or of trailers."""
        self._begun = False
        self._incoming: _Incoming | None = None
        self._waiting: deque[_Incoming] = deque()
        self._busy: _Incoming | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        """Is what comes from the client no longer looked at?"""
        self._half_closed = False
        """Does the client send no more, and get answers yet?"""
        self._lingers = False
        self._dropped = 0
        self._reading = True
        self._writable = True
        self._waits = _Waits.HEAD
        self._due = inf
        self._write_due = inf
        self._unread = 0

    # From the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._set_wait(_Waits.HEAD, self._head_timeout)
        if self._refused is not None:
            self._loop.call_later(_SILENCE, self._refuse_silent, self._refused)

    def connection_lost(self, error: Exception | None) -> None:
        self._ended = True
        self._due = self._write_due = inf
        if self._task is not None:
            self._task.cancel()
        if self._incoming is not None:
            self._rest.abandoned(self._incoming.request)
            self._waiting.append(self._incoming)
        if self._busy is not None:
            self._waiting.append(self._busy)
        for incoming in self._waiting:
            if incoming.body is not None:
                incoming.body.release()
        self._waiting.clear()
        self._incoming = self._busy = None
        self._rest.budget.give_back(self._unread)
        self._unread = 0
        self._server.lost(self)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            self._drop(len(data))
            return
        while data and not self._ended:
            self._head += len(data)
            try:
                self._parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as upgrade:
                # Another protocol was offered; HTTP/1.1 goes on, as it may. The parser has given
                # up after the head: a new one is told what is to come.
                data = self._framing() + data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
            except httptools.HttpParserError as error:
                self._malformed(error)
                data = b""
        if self._begun and self._head > MAX_HEAD and not self._ended:
            self._refuse(_head_too_long())
        self._wait()

    def eof_received(self) -> bool:
        """The client sends no more. Does it get answers yet, or is the transport to close?"""
        last = self._waiting[-1] if self._waiting else self._busy
        if last is None or self._half_closed:
            return last is not None
        self._half_closed = self._ended = True
        last.keeps = False
        if self._incoming is not None:  # it will never be whole
            self._rest.abandoned(self._incoming.request)
            if self._incoming.body is not None:
                self._incoming.body.release()
            self._incoming = None
        self._begun = False
        # It may have closed the connection just as well. Then its system resets it as soon as
        # something comes, such as this, which clients drop that did not ask for it (RFC 9110,
        # section 15.2.1), and HTTP/1.0 does not know.
        if self._parser.get_http_version() != "1.0":
            self._transport.write(_CONTINUE)
        self._loop.call_later(_ROUND_TRIP, self._look_for_reset)
        self._wait()
        return True

    def pause_writing(self) -> None:
        self._writable = False
        self._hold(self._transport.get_write_buffer_size())
        self._write_due = time.monotonic() + self._server.limits.write_timeout

    def resume_writing(self) -> None:
        self._writable = True
        self._write_due = inf
        self._hold(0)
        self._answer_next()
        self._wait()

    # From the server

    @property
    def idle(self) -> bool:
        """Has it no request that came whole or in part?"""
        return not (self._begun or self._busy or self._waiting)

    def close(self) -> None:
        """End it, once what is written is sent."""
        self._ended = True
        self._set_wait(_Waits.CLOSE, self._server.limits.write_timeout)
        self._transport.close()

    def half_close(self) -> None:
        """End it, and take what its client is just sending, which would else be answered with a
        reset."""
        self._ended = True
        self._set_wait(_Waits.CLOSE, _PARTING)
        if not self._transport.is_closing():
            self._transport.write_eof()

    def abort(self) -> None:
        """End it at once."""
        self._ended = True
        self._transport.abort()

    def check(self, now: float) -> None:
        """End the connection if what it waits for is late, at the time `now` (monotonic)."""
        if self._half_closed:
            self._look_for_reset()
        if now >= self._write_due:
            unread = self._transport.get_write_buffer_size()
            if unread > self._unread - _PROGRESS:
                self._server.ended("write timeout")
                self.abort()
            else:
                self._hold(unread)
                self._write_due = now + self._server.limits.write_timeout
        if now >= self._due:
            self._late()
            self._wait()

    def _look_for_reset(self) -> None:
        """Has a client that sends no more gone altogether? The loop, which has nothing to read
        there, would only notice when it writes."""
        if not self._transport.is_closing():
            here: socket.socket = self._transport.get_extra_info("socket")
            if here.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.abort()

    def _late(self) -> None:
        limits = self._server.limits
        if self._refused is not None and self._waits is _Waits.HEAD:
            self._refuse(self._refused)
        elif self._waits is _Waits.HEAD and self._begun:
            self._server.ended("head timeout")
            self._fail(_late("headers", "head_timeout", limits.head_timeout))
        elif self._waits is _Waits.BODY:
            self._server.ended("body timeout")
            self._fail(_late("body", "body_timeout", limits.body_timeout))
        elif self._waits is _Waits.CLOSE:
            self.abort()
        else:
            self._server.ended("idle timeout")
            self.half_close()

    def _refuse_silent(self, refused: Response) -> None:
        """It has asked nothing yet; there is room for few that are refused, and others wait."""
        if self.idle and not self._ended:
            self._refuse(refused, whole=True)

    # From the parser

    def on_message_begin(self) -> None:
        self._begun = True
        self._target = b""
        self._fields = []

    def on_url(self, piece: bytes) -> None:
        self._target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._incoming is None:  # else it is a trailer, which nobody has asked for
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._incoming is not None:  # it is told again what it knows
            return
        parser = self._parser
        if self._head > MAX_HEAD and self._head_size() > MAX_HEAD:
            self._refuse(_head_too_long())
            raise _Enough
        method = parser.get_method().decode("latin-1")
        request = request_of(method, self._target.decode("latin-1"), self._fields)
        incoming = _Incoming(request, parser.should_keep_alive())
        self._incoming = incoming
        self._head = 0
        headers = request.headers
        incoming.upgrades = "upgrade" in headers and parser.should_upgrade()
        size = headers.get("content-length")
        declared = None if size is None else int(size)
        incoming.answer = self._refusal(incoming, declared)
        expects = "expect" in headers and headers["expect"].lower() == "100-continue"
        if incoming.answer is not None:
            chunked = "transfer-encoding" in headers
            if chunked or (declared or 0) > _SMALL or (expects and declared):
                self._refuse(incoming.answer)
                raise _Enough
        elif expects and parser.get_http_version() != "1.0":
            incoming.expects = True
            self._continue()

    def on_body(self, piece: bytes) -> None:
        incoming = self._incoming
        self._head = 0
        if incoming is not None and incoming.body is not None:
            try:
                incoming.body.add(piece)
            except RequestError as error:
                self._fail(error)
                raise _Enough from error

    def on_message_complete(self) -> None:
        incoming = self._incoming
        assert incoming is not None
        if incoming.upgrades:  # its body is still to come
            incoming.upgrades = False
            return
        if len(self._waiting) >= MAX_PIPELINED:
            text = f"a connection takes at most {MAX_PIPELINED} requests ahead of their answers"
            self._refuse(error_response(text, 400))
            raise _Enough
        if incoming.body is not None:
            incoming.request.body = incoming.body.whole()
        self._incoming = None
        self._begun = False
        self._head = 0
        self._waits = _Waits.ANSWER  # so that the next request's time is counted from its start
        self._take(incoming)

    def _framing(self) -> bytes:
        """A head with what the request that arrives says of the body after it."""
        assert self._incoming is not None
        headers = self._incoming.request.headers
        lines = ["POST / HTTP/1.1"]
        for name in ("content-length", "transfer-encoding"):
            if name in headers:
                lines.append(f"{name}: {headers[name]}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    # Requests

    def _refusal(self, incoming: _Incoming, declared: int | None) -> Response | None:
        """The answer to a request whose head suffices to refuse it; else its body may come."""
        request = incoming.request
        if self._refused is not None:
            incoming.keeps = False
            if request.target != "/v2/health/live":
                return self._refused
        if request.method == "CONNECT":
            incoming.keeps = False
            self._refuse(error_response("this is no proxy", HTTPStatus.METHOD_NOT_ALLOWED))
            raise _Enough
        if not request.target.isascii():
            incoming.keeps = False
            return error_response("the request's target is not ASCII; percent-encode it", 400)
        coding = request.headers.get("transfer-encoding", "chunked")
        if coding.lower() != "chunked":
            incoming.keeps = False
            text = f"transfer coding {coding[:40]!r} is not read here; send chunked or none"
            return error_response(text, 501)
        refused = self._rest.begin(request)
        if refused is None:
            try:
                incoming.body = Body(self._rest.limits.max_body, self._rest.budget, declared)
            except RequestError as error:
                refused = self._rest.refused(request, error)
        return refused

    def _refuse(self, answer: Response, *, whole: bool = False) -> None:
        """Let this answer be the connection's last, whatever else the client sends; `whole`: it has
        begun nothing that it did not end."""
        incoming = self._incoming or _Incoming(_NONE, keeps=False)
        self._incoming = None
        self._begun = False
        if incoming.body is not None:
            incoming.body.release()
        incoming.answer = answer
        incoming.keeps = False
        self._take(incoming, whole=whole)

    def _malformed(self, error: httptools.HttpParserError) -> None:
        if self._ended:  # what is wrong comes after the last request that is read
            return
        if isinstance(error, httptools.HttpParserCallbackError):
            _log.error("a request could not be read", exc_info=error)
            text = "the server failed to read the request; its log says why"
            self._refuse(error_response(text, 500))
            return
        self._fail(InvalidRequestError(f"this is not HTTP/1.1 as it should be: {error}"))

    def _fail(self, error: RequestError) -> None:
        """Let the request that arrives end with this error, and the connection with it."""
        request = _NONE if self._incoming is None else self._incoming.request
        self._refuse(self._rest.refused(request, error))

    def _take(self, incoming: _Incoming, whole: bool = True) -> None:
        """Answer a request now, or when its turn has come."""
        if not incoming.keeps:
            self._ended = True
            self._lingers = not whole
        self._waiting.append(incoming)
        self._answer_next()

    def _answer_next(self) -> None:
        """Let what waits be answered, as far as the client reads."""
        while self._waiting and self._busy is None and self._writable:
            self._busy = incoming = self._waiting.popleft()
            if incoming.answer is not None:
                self._write(incoming, incoming.answer)
            else:
                self._task = self._loop.create_task(self._answer(incoming))
        self._continue()
        read = len(self._waiting) < _PAUSE or self._ended
        if read != self._reading and not self._transport.is_closing():
            self._reading = read
            if read:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    async def _answer(self, incoming: _Incoming) -> None:
        response = await self._rest.answer(incoming.request)
        self._task = None
        try:
            self._write(incoming, response)
            self._answer_next()
            self._wait()
        except Exception:
            _log.exception("an answer could not be written")
            self.abort()

    def _continue(self) -> None:
        """Tell a client that waits for it to send its body, when those before it are answered."""
        incoming = self._incoming
        if incoming is not None and incoming.expects and self._busy is None:
            incoming.expects = False
            self._transport.write(_CONTINUE)

    # Answers

    def _write(self, incoming: _Incoming, response: Response) -> None:
        """Write the answer to the request that is busy; it is over with that."""
        self._busy = None
        if incoming.body is not None:
            incoming.body.release()
        if self._transport.is_closing():
            return
        content = response.content
        more = self._waiting or self._incoming is not None
        last = not incoming.keeps or (self._server.closing and not more)
        lines = [_STATUS_LINES[response.status], self._server.date]
        lines += [b"%b: %b\r\n" % header for header in response.headers]
        lines.append(b"content-length: %d\r\n" % len(content))
        if last:
            lines.append(b"connection: close\r\n")
        elif "connection" in incoming.request.headers:
            lines.append(b"connection: keep-alive\r\n")  # HTTP/1.0 wants to be told
        lines.append(b"\r\n")
        if incoming.request.method == "HEAD":
            content = b""
        if len(content) <= _JOIN:
            lines.append(content)
            self._transport.write(b"".join(lines))
        else:
            self._transport.writelines((b"".join(lines), content))
        if last:
            self._end()

    def _end(self) -> None:
        """Close after the last answer; first drop what the client is sending, for a client that
        is sending would lose an answer that comes with the end of its connection."""
        self._ended = True
        if self._lingers:
            self._set_wait(_Waits.CLOSE, _LINGER)
            self._transport.write_eof()
        else:
            self.close()

    def _drop(self, size: int) -> None:
        """Count what comes after the last request, up to more than honest clients send."""
        self._dropped += size
        if self._dropped > 2 * self._server.limits.max_body:
            self.abort()

    def _hold(self, unread: int) -> None:
        """Count the answers that the client has not read, in place of those that it had not."""
        budget = self._rest.budget
        budget.give_back(self._unread)
        budget.hold(unread)
        self._unread = unread

    # Time limits

    def _wait(self) -> None:
        """Count the time of what the connection waits for now, from when it began to."""
        limits = self._server.limits
        if self._waits is _Waits.CLOSE:
            return
        if not self._reading or self._ended:
            self._set_wait(_Waits.ANSWER, inf)
        elif self._incoming is not None:
            if self._waits is not _Waits.BODY:
                self._set_wait(_Waits.BODY, limits.body_timeout)
        elif self._begun:
            if self._waits is not _Waits.HEAD:
                self._set_wait(_Waits.HEAD, self._head_timeout)
        elif self._busy is not None:
            self._set_wait(_Waits.ANSWER, inf)
        elif self._waits is not _Waits.REQUEST:
            self._set_wait(_Waits.REQUEST, limits.idle_timeout)

    @property
    def _head_timeout(self) -> float:
        """Seconds for the headers. Refused connections get few: there is room for few of them."""
        timeout = self._server.limits.head_timeout
        return timeout if self._refused is None else min(timeout, _REFUSED_TIMEOUT)

    def _set_wait(self, waits: _Waits, seconds: float) -> None:
        self._waits = waits
        self._due = inf if seconds == inf else time.monotonic() + seconds

    def _head_size(self) -> int:
        return len(self._target) + sum(
            len(name) + len(value) + len(b": \r\n") for name, value in self._fields
        )


def _head_too_long() -> Response:
    text = f"the request's line and headers are longer than {MAX_HEAD} bytes"
    return error_response(text, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)


def _late(what: str, limit: str, seconds: float) -> LateRequestError:
    return LateRequestError(
        f"the request's {what} did not come whole within the {limit} of {seconds:g} s"
    )
