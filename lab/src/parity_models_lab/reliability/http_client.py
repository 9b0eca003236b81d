"""Many clients over HTTP on bare asyncio sockets: cheap, so that three runs fit on two cores."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from parity_models_lab.processes import unread_bytes

FRESH = 3.0
"""Seconds for which an idle connection is used again: less than servers keep them."""
MAX_HEAD = 2**16


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class BrokenError(Exception):
    """The connection could not be made, or ended before the answer did."""


class UnreadError(BrokenError):
    """The client hung up on a server that had not read its request."""


class Connection(asyncio.Protocol):
    """One connection that is kept open; one request at a time."""

    def __init__(self, clients: "HttpClients") -> None:
        self._clients = clients
        self._received = bytearray()
        self._answer: asyncio.Future[HttpAnswer] | None = None
        self._transport: asyncio.Transport | None = None
        self.idle_since = 0.0
        self.surplus = 0
        """How often something came that was not asked for."""

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_unread(self) -> bool:
        """Has the process at the other end, on this machine, not read all that was sent to it?"""
        if self._transport is None:
            return False
        theirs, ours = map(self._transport.get_extra_info, ("peername", "sockname"))
        return unread_bytes(theirs[1], ours[1]) > 0

    def ask(self, request: bytes) -> "asyncio.Future[HttpAnswer]":
        """Send a whole request; the future has its answer, or a BrokenError."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def abort(self) -> None:
        """Hang up at once."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._clients.open += 1

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            if b"408" not in data[:16]:  # what a server says to an idle connection that it closes
                self.surplus += 1
            self.abort()
            return
        self._received += data
        try:
            answer = _whole_answer(self._received)
        except ValueError as error:
            self._answer.set_exception(BrokenError(f"no HTTP: {error}"))
            self.abort()
            return
        if answer is not None:
            self._received.clear()
            self.idle_since = asyncio.get_running_loop().time()
            if answer.headers.get("connection", "").lower() == "close":
                self.abort()
            self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.open -= 1
        if self._answer is not None and not self._answer.done():
            what = "reset" if isinstance(exc, ConnectionResetError) else "closed"
            self._answer.set_exception(BrokenError(what))


class HttpClients:
    """Connections to one server: one that is idle is used again, else another is opened."""

    def __init__(self, url: str) -> None:
        at = urlsplit(url)
        assert at.hostname is not None
        assert at.port is not None
        self._host, self._port = at.hostname, at.port
        self.authority = at.netloc
        self._idle: list[Connection] = []
        self.open = 0
        """Connections that there are."""
        self.surplus = 0
        """Answers that nobody asked for: some query ended twice."""

    async def connect(self) -> Connection:
        """A connection that is open. Raises BrokenError if there is none."""
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since < FRESH:
                return connection
            self._count(connection)
            connection.abort()
        try:
            _, protocol = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self), self._host, self._port
            )
        except OSError as error:
            raise BrokenError(f"not connected: {error.strerror}") from error
        return protocol

    async def ask(self, request: bytes, *, say_if_unread: bool = False) -> HttpAnswer:
        """The answer to a whole request. Raises BrokenError; hangs up if it is cancelled, which is
        an UnreadError where the server has not read the request and that is to be said: to find
        out takes as long as the system has sockets."""
        connection = await self.connect()
        try:
            answer = await connection.ask(request)
        except asyncio.CancelledError:
            unread = say_if_unread and connection.is_unread
            connection.abort()
            if unread:
                raise UnreadError("the request was not read") from None
            raise
        except BaseException:
            connection.abort()
            raise
        if connection.usable:
            self._idle.append(connection)
        else:
            self._count(connection)
        return answer

    async def get(self, path: str) -> HttpAnswer:
        return await self.ask(f"GET {path} HTTP/1.1\r\nHost: {self.authority}\r\n\r\n".encode())

    def close(self) -> None:
        for connection in self._idle:
            self._count(connection)
            connection.abort()
        self._idle.clear()

    def _count(self, connection: Connection) -> None:
        self.surplus += connection.surplus
        connection.surplus = 0


def _whole_answer(received: bytearray) -> HttpAnswer | None:
    """The answer that begins `received`, once all of it is there. ValueError if it is none."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        if len(received) > MAX_HEAD:
            raise ValueError("the head does not end")
        return None
    first, *lines = received[:end].decode("latin-1").split("\r\n")
    version, status, *_ = first.split(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(f"it begins with {first[:40]!r}")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = bytes(received[end + 4 :])
    if headers.get("transfer-encoding") == "chunked":
        content = _joined(body)
    else:
        length = int(headers.get("content-length", 0))
        if len(body) > length:
            raise ValueError("more came than one answer")
        content = None if len(body) < length else body
    return None if content is None else HttpAnswer(int(status), headers, content)


def _joined(body: bytes) -> bytes | None:
    """The content of a body in chunks, as uvicorn sends what has no length; None while it is not
    whole. ValueError if it is none, or something follows."""
    content = b""
    while True:
        size, found, rest = body.partition(b"\r\n")
        if not found:
            return None
        length = int(size, 16)
        if len(rest) < length + 2:
            return None
        content, body = content + rest[:length], rest[length + 2 :]
        if not length:
            if body:
                raise ValueError("more came than one answer")
            return content
