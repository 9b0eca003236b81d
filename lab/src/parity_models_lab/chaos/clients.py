"""Clients of the server under test: many over HTTP and gRPC, and some that behave badly.

They are written on bare sockets, as they send requests that no client library would.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from parity_models.scheduling import Source
from parity_models.serving.grpc.inference_pb2 import ModelInferRequest, ModelInferResponse
from parity_models_lab.chaos.known_model import MODEL, OUTPUTS, KnownModel
from parity_models_lab.chaos.ledger import Kind
from parity_models_lab.chaos.requests import Drawn, http_request
from parity_models_lab.processes import unread_bytes

FRESH = 3.0
"""Seconds for which an idle connection is used again: less than servers keep them."""
MAX_HEAD = 2**16
BYTE_EVERY = 0.2
"""Seconds between two bytes of a slow client."""

METHOD = "/inference.GRPCInferenceService/ModelInfer"
STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.ABORTED: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""The HTTP statuses that gRPC's stand for."""
TRANSPORT = ("connect", "Socket closed", "recvmsg", "GOAWAY", "Connection reset", "Broken pipe")
"""Parts of grpc's own texts for a connection that broke."""


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

    def __init__(self) -> None:
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
        self.surplus = 0
        """Unexpected answers: some query ended twice."""

    async def connect(self) -> Connection:
        """Return a connection that is open. Raises BrokenError if there is none."""
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since < FRESH:
                return connection
            self._drop(connection)
        try:
            _, protocol = await asyncio.get_running_loop().create_connection(
                Connection, self._host, self._port
            )
        except OSError as error:
            raise BrokenError(f"not connected: {error.strerror}") from error
        return protocol

    async def ask(self, request: bytes, *, say_if_unread: bool = False) -> HttpAnswer:
        """Return the answer to a whole request; hang up if cancelled.

        Raises:
            BrokenError: The connection ended.
            UnreadError: Cancelled, `say_if_unread` is set and the server has not read the request.
                To find out takes as long as the system has sockets.

        """
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
            self._drop(connection)
        return answer

    async def get(self, path: str) -> HttpAnswer:
        return await self.ask(f"GET {path} HTTP/1.1\r\nHost: {self.authority}\r\n\r\n".encode())

    def close(self) -> None:
        while self._idle:
            self._drop(self._idle.pop())

    def _drop(self, connection: Connection) -> None:
        self.surplus += connection.surplus
        connection.abort()


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
    length = int(headers.get("content-length", 0))
    if len(body) > length:
        raise ValueError("more came than one answer")
    return None if len(body) < length else HttpAnswer(int(status), headers, body)


@dataclass(frozen=True)
class GrpcError:
    """The call ended with an error of the server, as an HTTP status."""

    status: int
    text: str


class GrpcClients:
    """One channel: HTTP/2 carries all calls."""

    def __init__(self, address: str) -> None:
        options = (("grpc.max_reconnect_backoff_ms", 500), ("grpc.enable_retries", 0))
        self._channel = grpc.aio.insecure_channel(address, options)
        self._call = self._channel.unary_unary(
            METHOD,
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelInferResponse.FromString,
        )

    async def infer(
        self, drawn: Drawn, number: int
    ) -> tuple[NDArray[np.float32], list[Source]] | GrpcError:
        """Return outputs (n, OUTPUTS) and sources, or the server's error. Raises BrokenError."""
        assert drawn.rows is not None
        message = ModelInferRequest(model_name=MODEL, id=str(number))
        message.inputs.add(name="input", datatype="FP32", shape=drawn.rows.shape)
        message.raw_input_contents.append(drawn.rows.tobytes())
        if drawn.timeout is not None:
            message.parameters["timeout"].int64_param = max(1, round(drawn.timeout * 1e6))
        if drawn.exact:
            message.parameters["redundancy"].string_param = "exact"
        try:
            response = await self._call(message)
        except grpc.aio.AioRpcError as error:
            text = error.details() or ""
            unavailable = error.code() is grpc.StatusCode.UNAVAILABLE
            if unavailable and any(map(text.__contains__, TRANSPORT)):
                raise BrokenError(f"gRPC: {text[:60]}") from error
            return GrpcError(STATUSES.get(error.code(), 500), text)
        if response.id != str(number):
            raise BrokenError("gRPC: the answer is another's")
        outputs = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(-1, OUTPUTS)
        sources = response.parameters["source"].string_param.split(",")
        return outputs, [Source(source) for source in sources]

    async def close(self) -> None:
        await self._channel.close()


class RudeClients:
    """Slow, vanishing, deaf and idle clients of the server at `url`.

    None of them asks a query whole, so that none of them is in the ledger.
    """

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
        """Open so many connections that say nothing, or as many as there can be."""
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
