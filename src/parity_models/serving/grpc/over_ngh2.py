"""gRPC over HTTP/2 by ngh2 (libnghttp2), on the event loop.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. Messages count against the budget as
they arrive, and every wait for a client has a timeout, as over HTTP/1.1.
"""

import asyncio
import base64
import logging
import re
import time
import zlib
from math import inf
from typing import Any
from urllib.parse import quote

import ngh2
import numpy as np

from parity_models.serving.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    Refused,
    RefusedError,
    RequestError,
)
from parity_models.serving.grpc.service import (
    AGE_GRACE,
    CHECK,
    INFER,
    REFLECT,
    RESERVE,
    WATCH,
    Rpc,
    Service,
)
from parity_models.serving.http import GRACE, Connection, ConnectionServer, listen, url_of
from parity_models.serving.inference import Inference
from parity_models.serving.limits import Limits
from parity_models.serving.rest import WINDOW_BITS, encoded

_log = logging.getLogger(__name__)

_MAX_HEAD = 16 * 2**10
"""Bytes of metadata that clients may send; four times that ends the connection."""

_WINDOW, _CONNECTION_WINDOW, _MAX_FRAME = 2**20, 2**22, 2**18
"""Bytes that a client may send ahead, of a message and of a connection, and of a frame."""

_SLICE, _TURN = 16 * 2**10, 100
"""Bytes that are taken at once, unless frames are large, and the number of frames after which the
rest waits for a turn of the event loop."""

_MAX_WRITE = 64 * 2**10
"""Bytes that are written at once; a client has to take as many in each write timeout."""

_SLACK = 0.2
"""Seconds that clients have to end a call themselves, once its deadline has passed."""

_MAX_UNREAD = 2**18
"""Bytes of unread answers at which a stream of reflection ends."""

_COPIED = 64 * 2**10
"""Bytes of a message that are copied, as protobuf takes no view of them."""

_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)

_HEAD = (
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity,deflate,gzip"),
)
_OK = (b"grpc-status", b"0")
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

# A client may cancel 2,000 calls at once and 1,000 per second.
_CONFIGURATION = ngh2.Configuration(
    max_inbound_header_list_size=4 * _MAX_HEAD, stream_reset_rate_limit=(2000, 1000)
)


class _Call(Rpc):
    """A call, from its head to the end of its stream.

    `size` is that of its message, with the prefix, once it is known; `arrived` bytes are here. It
    is `whole` when its client has sent all, and `ended` when its status is queued. `since` is the
    time of its beginning and, once it has ended, of the client's last progress; `unread` bytes are
    then left.
    """

    def __init__(self, event: ngh2.RequestReceived, service: Service) -> None:
        fields = [(key.decode(), value.decode("latin-1")) for key, value in event.headers]
        super().__init__(fields, service)
        self.stream = event.stream_id
        self.size = self.arrived = 0
        self.task: asyncio.Task[None] | None = None
        self.whole = self.has_head = self.ended = False
        self.deadline = self.unread = inf
        self.since = time.monotonic()

    def add(self, data: bytes) -> None:
        """Keep bytes of the message, those of a large one where they belong."""
        at, self.arrived = self.arrived, self.arrived + len(data)
        if isinstance(self.body, memoryview):
            self.body[at : self.arrived] = data
        elif self.name == INFER and self.size > max(self.arrived, _COPIED):
            # Memory that nothing was written to takes none.
            buffer = np.empty(self.size, np.uint8).data
            buffer[: self.arrived] = self.body + data
            self.body = buffer
        elif self.body:
            self.body = bytearray(self.body) if isinstance(self.body, bytes) else self.body
            self.body += data
        else:
            self.body = data


class _Connection(Connection):
    """A connection: bytes in, calls out, answers as they are ready."""

    def __init__(self, server: "GrpcServer", peer: str, refused: RequestError | None) -> None:
        super().__init__(peer, refused)
        self._server = server
        self.calls: dict[int, _Call] = {}
        self._h2 = ngh2.Connection(ngh2.Role.SERVER, _CONFIGURATION)
        self._reading: asyncio.Task[None] | None = None
        self._refused_streams: list[int] = []
        """Streams whose answer is an error, and whose message still arrives."""
        self._flushes = self._paused = self._has_called = False
        self._began = self._heard = self._active = time.monotonic()
        """The times of its beginning, of the client's last bytes, and of the last call's end."""
        self._closes = self._pinged = inf
        """The time at which it ends, whatever is left, and that of a ping without an answer."""

    # Callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._began = self._heard = self._active = time.monotonic()
        self._h2.initiate_connection(self._server.settings)
        self._h2.set_local_window_size(_CONNECTION_WINDOW)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._drop()
        self._server.lost(self)

    def data_received(self, data: bytes) -> None:
        self._heard = time.monotonic()
        self._receive(memoryview(data))

    def _receive(self, data: memoryview) -> None:
        """Take what has come. After many frames, leave the rest for a turn of its own."""
        frames, size = 0, _SLICE
        while data and not self._ended:
            if frames > _TURN:
                self._transport.pause_reading()
                self._reading = asyncio.get_running_loop().create_task(self._go_on(data))
                break
            try:
                self._h2.receive_data(data[:size])
            except ngh2.NGH2Error as error:
                _log.debug("a connection broke the rules of HTTP/2: %r", error)
                self._server.ended("HTTP/2")
                self.abort()
                return
            events = self._take_events()
            frames, data = frames + events, data[size:]
            size = _SLICE if events > _TURN / 4 else 4 * _SLICE
        if not self._flushes:
            self._flush()

    async def _go_on(self, data: memoryview) -> None:
        await self._server.budget.turn()
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._receive(data)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    # Called by the server

    @property
    def idle(self) -> bool:
        return not self.calls

    @property
    def waits(self) -> tuple[int, float] | None:
        if self.calls:
            return None
        return (0, self._active) if self._has_called else (1, self._began)

    def end(self, seconds: float = AGE_GRACE) -> None:
        """Ask the client to reconnect, and end once its calls are over, or after this time."""
        if not self._ended and self._closes == inf:
            self._closes = time.monotonic() + seconds
            self._h2.send_goaway()
            self._flush_soon()

    def check(self, now: float) -> None:
        limits = self._server.limits
        if now >= self._closes or now >= self._pinged + limits.head_timeout:
            self.abort()
        if self._ended or self.opening is not None:
            return
        wait = "idle_timeout" if self._has_called else "head_timeout"
        if not self.calls and now >= self._active + getattr(limits, wait):
            self._server.ended(wait.replace("_", " "))
            self.end(limits.head_timeout)
        elif self._server.stopping or now >= self._began + limits.max_age:
            self.end()
        elif self._pinged == inf and now >= self._heard + limits.idle_timeout:
            self._pinged = now
            self._h2.ping()
        for call in list(self.calls.values()):
            self._check_call(call, now)
        self._flush_soon()

    def _check_call(self, call: _Call, now: float) -> None:
        """End a call that is late, or whose answer is not read."""
        limits = self._server.limits
        if call.ended:
            unread = self._h2.queued_body_size(call.stream)
            if not (unread or call.whole or self._paused):  # the rest of its message is not needed
                self._h2.reset_stream(call.stream, ngh2.ErrorCode.NO_ERROR)
            elif unread < call.unread:
                call.unread, call.since = unread, now
            elif now >= call.since + limits.write_timeout:
                self._server.ended("write timeout")
                self._h2.reset_stream(call.stream, ngh2.ErrorCode.CANCEL)
        elif now >= call.deadline + _SLACK:
            self.fail(call, DeadlineError("the client's deadline has passed"))
            if call.task is not None:
                call.task.cancel()
        elif not call.whole and call.name != REFLECT and now >= call.since + limits.body_timeout:
            self.fail(call, limits.late("the message", Refused.BODY_TIMEOUT))

    # Calls

    def _take_events(self) -> int:
        """Handle what has happened; return the number of events."""
        events = self._h2.events()
        for event in events:
            try:
                self._take(event)
            except ngh2.StreamProtocolError as error:  # as a later event says
                _log.debug("the stream is closed already: %r", error)
        return len(events)

    def _take(self, event: ngh2.Event) -> None:
        if isinstance(event, ngh2.DataReceived):
            call = self.calls.get(event.stream_id)
            if call is not None and not call.ended:
                self._on_data(call, event.data)
                if event.end_stream:
                    self._on_end(call)
        elif isinstance(event, ngh2.StreamClosed):
            self._active = time.monotonic()
            if (call := self.calls.pop(event.stream_id, None)) is not None:
                self._forget(call)
        elif isinstance(event, ngh2.RequestReceived):
            self._on_request(event)
        elif isinstance(event, ngh2.TrailersReceived):
            if (call := self.calls.get(event.stream_id)) is not None:
                self._on_end(call)
        elif isinstance(event, ngh2.PingAcknowledged):
            self._pinged = inf
        elif isinstance(event, ngh2.ConnectionClosed):
            self._drop()
            self._closes = time.monotonic() + self._server.limits.write_timeout
            self._transport.close()

    def _on_request(self, event: ngh2.RequestReceived) -> None:
        self._has_called = True
        call = _Call(event, self._server)
        if not call.headers.get("content-type", "").startswith("application/grpc"):
            self._h2.send_response(call.stream, ((b":status", b"415"),), end_stream=True)
            return
        self.calls[call.stream] = call
        self._server.calls += 1
        try:
            self._server.begin(call)
            if not call.name:
                raise RefusedError("Method not found!", 501, Refused.METHOD)
            if self._refused is not None and call.name != CHECK:
                raise self._refused
            self._server.admit(self, call)
            if (timeout := call.headers.get("grpc-timeout")) is not None:
                call.deadline = call.since + _seconds(timeout)
        except RequestError as error:
            self.fail(call, error)
        else:
            if event.end_stream:
                self._on_end(call)

    def _on_data(self, call: _Call, data: bytes) -> None:
        try:
            if call.size and call.name != REFLECT and call.arrived + len(data) > call.size:
                raise InvalidRequestError("the call has more than one message")
            call.add(data)
            call.size = call.size or self._size_at(call, 0)
            if call.name == INFER:
                call.hold(len(data))
            elif call.name == REFLECT:
                self._reflect(call)
        except RequestError as error:
            self.fail(call, error)

    def _size_at(self, call: _Call, at: int) -> int:
        """Return the size of the message that begins there, with its prefix; 0 if it is unknown.
        Raises a RequestError for one that is too large."""
        prefix = call.body[at : at + 5]
        if len(prefix) < 5:
            return 0
        size = int.from_bytes(prefix[1:], "big")
        self._server.check_size(call, size)
        return 5 + size

    def _reflect(self, call: _Call) -> None:
        """Answer the messages of a stream that have come. Raises a RequestError."""
        at = 0
        while call.size and at + call.size <= len(call.body):
            if self._h2.queued_body_size(call.stream) > _MAX_UNREAD:
                raise OverloadedError("read the answers of this stream before you ask for more")
            message = self._message(call, call.body[at : at + call.size])
            self._send(call, self._server.reflect(message))
            at += call.size
            call.size = self._size_at(call, at)
        call.body = call.body[at:]

    def _on_end(self, call: _Call) -> None:
        """Begin a call, whose message is whole."""
        call.whole = True
        if call.ended:
            return
        if call.name == REFLECT:
            self._finish(call)
        elif not call.size or call.arrived != call.size:
            self.fail(call, InvalidRequestError("the call does not have one whole message"))
        else:
            call.task = asyncio.get_running_loop().create_task(self._answer(call))

    def _forget(self, call: _Call) -> None:
        """Drop a call whose stream is closed, by its end or by its client."""
        self._server.calls -= 1
        if not call.ended:
            call.ended = True
            if call.task is not None:
                call.task.cancel()
            self._server.abandoned(call)
        call.release()

    def _drop(self) -> None:
        """Drop all calls: the connection is over."""
        self._ended = True
        for call in self.calls.values():
            self._forget(call)
        self.calls.clear()

    def _message(self, call: _Call, frame: Any) -> bytes | memoryview:
        """Return the message in a whole frame of gRPC. Raises a RequestError."""
        if not frame[0]:
            large = len(frame) > _COPIED
            return memoryview(frame).toreadonly()[5:] if large else bytes(frame[5:])
        coding, most = call.headers.get("grpc-encoding"), self._server.max_size(call)
        if coding not in WINDOW_BITS:
            raise RefusedError("compress with gzip, deflate or not", 501, Refused.CONTENT_ENCODING)
        decompressor = zlib.decompressobj(WINDOW_BITS[coding])
        try:
            message = decompressor.decompress(frame[5:], most + 1)
        except zlib.error as error:
            raise InvalidRequestError("the message cannot be decompressed") from error
        if len(message) > most or not decompressor.eof:
            text = f"Received message larger than max (decompressed, vs. {most}), or a part of one"
            raise RefusedError(text, 413, Refused.MAX_BODY)
        call.hold(max(0, len(message) - call.held))
        return message

    async def _answer(self, call: _Call) -> None:
        service = self._server
        try:
            call.body = self._message(call, call.body)
            if call.deadline != inf:
                call.timeout = max(0.0, call.deadline - time.monotonic())
            if call.name == WATCH:
                async for answer in service.watch(call):
                    self._send(call, answer)
            else:
                self._send(call, await service.answer(call))
        except Exception as error:
            self.fail(call, error)
        else:
            self._finish(call)

    # Answers

    def _send(self, call: _Call, message: bytes) -> None:
        if not call.ended:
            self._send_head(call)
            self._h2.send_data(call.stream, b"\0" + len(message).to_bytes(4, "big") + message)
            self._flush_soon()

    def _send_head(self, call: _Call) -> None:
        if not call.has_head:
            call.has_head = True
            self._h2.send_response(call.stream, _HEAD + encoded(call.initial))

    def _finish(self, call: _Call) -> None:
        """End a call with the status OK."""
        if not call.ended:
            call.ended = True
            self._send_head(call)
            self._h2.send_trailers(call.stream, (_OK, *encoded(call.trailing)))
            self._flush_soon()

    def fail(self, call: _Call, error: Exception) -> None:
        """End a call with an error."""
        if call.ended:
            return
        call.ended = True
        code, text, metadata = self._server.failed(call, error)
        status = (
            (b"grpc-status", b"%d" % code),
            (b"grpc-message", quote(text, safe=_PRINTABLE).encode()),
            *((name.encode(), base64.b64encode(value)) for name, value in metadata),
        )
        if call.initial:  # with the status, they would arrive as trailing metadata
            self._send_head(call)
        if call.has_head:
            self._h2.send_trailers(call.stream, status)
        else:
            self._h2.send_response(call.stream, _HEAD + status, end_stream=True)
            if not call.whole:
                self._refused_streams.append(call.stream)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushes:
            self._flushes = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Write what is ready, for as long as the client reads."""
        self._flushes = False
        if self._ended:
            return
        try:
            self._write()
            while self._refused_streams and not self._paused:
                # The rest of these messages is not needed: their streams make room for others.
                if (stream := self._refused_streams.pop()) in self.calls:
                    self._h2.reset_stream(stream, ngh2.ErrorCode.NO_ERROR)
            self._write()
        except ngh2.NGH2Error:
            _log.exception("a connection cannot go on")
            self.abort()
        else:
            self._take_events()

    def _write(self) -> None:
        while not self._paused and (data := self._h2.data_to_send(_MAX_WRITE)):
            self._transport.write(data)


def _seconds(timeout: str) -> float:
    """Return a client's timeout in seconds. Raises InvalidRequestError if it cannot be read."""
    found = _TIMEOUT.fullmatch(timeout)
    if found is None:
        raise InvalidRequestError(f"grpc-timeout cannot be read: {timeout[:40]!r}")
    return int(found[1]) * _UNITS[found[2]]


class GrpcServer(ConnectionServer[_Connection], Service):
    """Serves the models of `inference`, within `limits`."""

    def __init__(self, inference: Inference, limits: Limits, **options: Any) -> None:
        Service.__init__(self, inference, limits, **options)
        certificate = self._certificate
        tls = None if certificate is None else lambda: certificate.http2_context
        ConnectionServer.__init__(self, limits, self.metrics, tls)
        self.calls = 0
        """Calls of all connections, from their heads to the ends of their streams."""
        self.settings = {
            ngh2.Setting.MAX_CONCURRENT_STREAMS: limits.max_rpcs + RESERVE,
            ngh2.Setting.INITIAL_WINDOW_SIZE: _WINDOW,
            ngh2.Setting.MAX_FRAME_SIZE: _MAX_FRAME,
            ngh2.Setting.MAX_HEADER_LIST_SIZE: _MAX_HEAD,
        }

    def connect(self, peer: str, refused: RequestError | None) -> _Connection:
        return _Connection(self, peer, refused)

    def admit(self, connection: _Connection, call: _Call) -> None:
        """Raise OverloadedError for a call that is one too many. If another connection has more,
        one of its calls that still arrive ends instead."""
        most = self.limits.max_rpcs + self.limits.max_connections + RESERVE
        most += RESERVE if call.name == CHECK else 0  # a full server tells its health
        if self.calls <= most:
            return
        text = f"the server has {most:,} gRPC calls, some of which still arrive; try again later"
        error = OverloadedError(text, why=Refused.MAX_RPCS)
        for each in sorted(self._connections, key=lambda each: len(each.calls), reverse=True):
            if each is connection:
                break
            arriving = (other for other in each.calls.values() if not (other.whole or other.ended))
            if (other := next(arriving, None)) is not None:
                each.fail(other, error)
                return
        raise error

    async def start(self, host: str, port: int) -> str:
        listening = listen(host, port, reuse_port=self._reuse_port, use=" for gRPC")
        self.serve(listening)
        return url_of(listening, "grpc" if self._certificate is None else "grpcs")

    async def stop(self, grace: float = GRACE) -> None:
        self.stopping = True
        await super().stop(grace)
