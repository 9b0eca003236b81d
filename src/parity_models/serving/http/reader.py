"""What a client sends over HTTP/1.1 (RFC 9112): bytes in, requests out, or what refuses them.

httptools parses, strictly: whatever two readers could understand in two ways is refused. This file
knows nothing of sockets, of time, or of answers that are under way.
"""

import logging
import re
from collections import deque
from typing import Protocol

import httptools

from parity_models.serving.errors import (
    ConnectError,
    HeadTooLargeError,
    InvalidRequestError,
    RequestError,
    TransferCodingError,
)
from parity_models.serving.refusals import Refused
from parity_models.serving.rest.messages import Body, Request, Response, error_response, request_of
from parity_models.serving.rest.service import Rest

_log = logging.getLogger(__name__)

MAX_HEAD = 64 * 2**10
"""Bytes that a request's line and headers may have, about."""

MAX_PIPELINED = 64
"""Requests of one connection that may wait for the answers to those before them."""

_SMALL = 64 * 2**10
"""Bytes of the body of a refused request that are read and dropped to keep its connection."""

_HOST = re.compile(r"(\[[0-9A-Fa-fv:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")
"""What a Host header may say (RFC 3986, sections 3.2.2 and 3.2.3)."""

_NONE = Request("", "", {})
"""What stands for a request whose head is not there."""


class Incoming:
    """A request that arrives, waits for its turn, or is being answered.

    `keeps`: its connection goes on after the answer. `answer` is there if it was refused by its
    head. `expects`: its client waits to be told to send the body.
    """

    __slots__ = ("answer", "body", "expects", "keeps", "request", "upgrades")

    def __init__(self, request: Request, keeps: bool) -> None:
        self.request = request
        self.keeps = keeps
        self.body: Body | None = None
        self.answer: Response | None = None
        self.expects = False
        self.upgrades = False

    def release(self) -> None:
        """Give back the memory of its body."""
        if self.body is not None:
            self.body.release()


class Receiver(Protocol):
    """Whom a reader tells what has come."""

    ended: bool
    """Is what comes from the client no longer looked at?"""

    waiting: deque[Incoming]
    """The requests that wait for the answers to those before them."""

    def take(self, incoming: Incoming, *, whole: bool = True) -> None:
        """A request is to be answered; `whole`: the client has begun nothing that it did not
        end."""

    def proceed(self) -> None:
        """A client may be waiting to be told to send its body."""


class _Enough(Exception):  # noqa: N818, as it is no error
    """Nothing further of what the client sends is looked at."""


class HttpReader:
    """Reads what a client sends, and hands `receiver` one request after another.

    Where `refused` says why the connection is, it answers all requests (but the question whether
    the server is alive). `incoming` is the request whose body is arriving; `begun`: of a request,
    something has come, and not all.
    """

    def __init__(self, receiver: Receiver, rest: Rest, refused: Response | None) -> None:
        self._receiver = receiver
        self._rest = rest
        self._refused = refused
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._head = 0
        """Bytes that came since there was a piece of a body: of a head, or of trailers."""
        self.begun = False
        self.incoming: Incoming | None = None

    def feed(self, data: bytes) -> None:
        """Read what the client has sent."""
        while data and not self._receiver.ended:
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
        if self.begun and self._head > MAX_HEAD and not self._receiver.ended:
            self.fail(_head_too_long())

    def refuse(self, answer: Response, *, whole: bool = False) -> None:
        """Let this answer be the connection's last, whatever else the client sends; `whole`: it has
        begun nothing that it did not end."""
        incoming = self.incoming or Incoming(_NONE, keeps=False)
        self.incoming = None
        self.begun = False
        incoming.release()
        incoming.answer = answer
        incoming.keeps = False
        self._receiver.take(incoming, whole=whole)

    def fail(self, error: RequestError) -> None:
        """Let the request that arrives end with this error, and the connection with it."""
        incoming = self.incoming  # which may have an answer by its head, and was counted with that
        request = _NONE if incoming is None or incoming.answer else incoming.request
        self.refuse(self._rest.refused(request, error))

    def abandon(self) -> None:
        """What arrives will never be whole."""
        if self.incoming is not None:
            self._rest.abandoned(self.incoming.request)
            self.incoming.release()
            self.incoming = None
        self.begun = False

    def close(self) -> None:
        """Nothing comes any more. What it holds that holds itself lets go, so that it is gone at
        once, and not when garbage is next searched for."""
        self.abandon()
        del self._parser, self._receiver

    @property
    def knows_continue(self) -> bool:
        """Does the client know the status 100, unlike those of HTTP/1.0?"""
        return self._parser.get_http_version() != "1.0"

    # From the parser

    def on_message_begin(self) -> None:
        self.begun = True
        self._target = b""
        self._fields = []

    def on_url(self, piece: bytes) -> None:
        self._target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.incoming is None:  # else it is a trailer, which nobody has asked for
            self._fields.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if self.incoming is not None:  # it is told again what it knows
            return
        parser = self._parser
        if self._head > MAX_HEAD and self._head_size() > MAX_HEAD:
            self.fail(_head_too_long())
            raise _Enough
        method = parser.get_method().decode("latin-1")
        request = request_of(method, self._target.decode("latin-1"), self._fields)
        incoming = Incoming(request, parser.should_keep_alive())
        self.incoming = incoming
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
                self.refuse(incoming.answer)
                raise _Enough
        elif expects and self.knows_continue:
            incoming.expects = True
            self._receiver.proceed()

    def on_body(self, piece: bytes) -> None:
        incoming = self.incoming
        self._head = 0
        if incoming is not None and incoming.body is not None:
            try:
                incoming.body.add(piece)
            except RequestError as error:
                self.fail(error)
                raise _Enough from error

    def on_message_complete(self) -> None:
        incoming = self.incoming
        assert incoming is not None
        if incoming.upgrades:  # its body is still to come
            incoming.upgrades = False
            return
        if len(self._receiver.waiting) >= MAX_PIPELINED:
            text = f"a connection takes at most {MAX_PIPELINED} requests ahead of their answers"
            self.fail(InvalidRequestError(text, why=Refused.PIPELINED))
            raise _Enough
        if incoming.body is not None:
            incoming.request.body = incoming.body.whole()
        self.incoming = None
        self.begun = False
        self._head = 0
        self._receiver.take(incoming)

    def _framing(self) -> bytes:
        """A head with what the request that arrives says of the body after it."""
        assert self.incoming is not None
        headers = self.incoming.request.headers
        lines = ["POST / HTTP/1.1"]
        for name in ("content-length", "transfer-encoding"):
            if name in headers:
                lines.append(f"{name}: {headers[name]}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _refusal(self, incoming: Incoming, declared: int | None) -> Response | None:
        """The answer to a request whose head suffices to refuse it; else its body may come."""
        request = incoming.request
        if self._refused is not None:
            incoming.keeps = False
            if request.target != "/v2/health/live":
                return self._refused
        if request.method == "CONNECT":
            incoming.keeps = False
            self.fail(ConnectError("this is no proxy"))
            raise _Enough
        if unclear := self._unclear(request):
            self.fail(InvalidRequestError(unclear, why=Refused.HTTP))
            raise _Enough
        if not request.target.isascii():
            incoming.keeps = False
            text = "the request's target is not ASCII; percent-encode it"
            return self._rest.refused(request, InvalidRequestError(text, why=Refused.HTTP))
        coding = request.headers.get("transfer-encoding", "chunked")
        if coding.lower() != "chunked":
            incoming.keeps = False
            text = f"transfer coding {coding[:40]!r} is not read here; send chunked or none"
            return self._rest.refused(request, TransferCodingError(text))
        refused = self._rest.begin(request)
        if refused is None:
            try:
                incoming.body = Body(self._rest.limits.max_body, self._rest.budget, declared)
            except RequestError as error:
                refused = self._rest.refused(request, error)
        return refused

    def _unclear(self, request: Request) -> str | None:
        """What a head leaves open that it must not (RFC 9112, sections 3.2 and 6.1), if anything:
        for whom the request is, or where it ends."""
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

    def _malformed(self, error: httptools.HttpParserError) -> None:
        if self._receiver.ended:  # what is wrong comes after the last request that is read
            return
        if isinstance(error, httptools.HttpParserCallbackError):
            _log.error("a request could not be read", exc_info=error)
            text = "the server failed to read the request; its log says why"
            self.refuse(error_response(text, 500))
            return
        text = f"this is not HTTP/1.1 as it should be: {error}"
        self.fail(InvalidRequestError(text, why=Refused.HTTP))

    def _head_size(self) -> int:
        return len(self._target) + sum(
            len(name) + len(value) + len(b": \r\n") for name, value in self._fields
        )


def _head_too_long() -> HeadTooLargeError:
    return HeadTooLargeError(f"the request's line and headers are longer than {MAX_HEAD} bytes")
