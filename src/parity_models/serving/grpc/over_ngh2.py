"""gRPC over HTTP/2 by ngh2 (libnghttp2), on the event loop.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. Messages are held as they arrive.
Every wait for a client has a timeout, as over HTTP/1.1.
"""

import asyncio
import base64
import logging
import re
import time
import zlib
from collections.abc import Sequence
from functools import lru_cache
from math import inf
from typing import cast
from urllib.parse import quote

import ngh2
from google.rpc import code_pb2
from ngh2 import Setting

from parity_models.serving.access import Certificate
from parity_models.serving.errors import (
    InvalidRequestError,
    OverloadedError,
    Refused,
    RefusedError,
    RequestError,
)
from parity_models.serving.grpc.codec import MAX_METADATA_BYTES
from parity_models.serving.grpc.service import (
    AGE_GRACE,
    CHECK,
    INFER,
    MAX_AGE,
    METHODS,
    REFLECT,
    RESERVE,
    WATCH,
    Metadata,
    Rpc,
    Service,
    StatusError,
)
from parity_models.serving.http import Connection, ConnectionServer, listen, url_of

_log = logging.getLogger(__name__)

_MAX_HEAD = 16 * 2**10
"""Approximate limit, in bytes, of the metadata that clients may send; four times that ends the
connection."""

_WINDOW, _CONNECTION_WINDOW, _FRAME = 2**20, 2**22, 2**18
"""Bytes of a message, of all messages of a connection, and of a frame, which a client may send
before the server has read them."""

_SLICE, _TURN = 16 * 2**10, 100
"""Bytes that are taken at once, and the number of frames after which the rest waits for a turn of
the event loop."""

_MAX_WRITE = 2**20
"""Bytes that are written at once."""

_COPIED = 64 * 2**10
"""Bytes of a message that are copied, as protobuf takes no view of them."""

_MAX_UNREAD = 2**18
"""Bytes of unread answers at which a stream of reflection ends."""

_PROGRESS = 16 * 2**10
"""Bytes of unread answers that a client has to take in each write timeout."""

_RESETS = (2000, 1000)
"""Calls that a client may cancel at once, and per second, on one connection."""

_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")

_METHODS = {path.encode(): name for path, name in METHODS.items()}

_OWN = frozenset((b"te", b"content-type", b"user-agent", b"grpc-accept-encoding"))
"""Headers that are no metadata of the client's, besides those that begin with a colon."""

_HEAD = (
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity,deflate,gzip"),
)
_OK = (b"grpc-status", b"0")

_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

_CONFIGURATION = ngh2.Configuration(
    max_inbound_header_list_size=4 * _MAX_HEAD, stream_reset_rate_limit=_RESETS
)


class _Call(Rpc):
    """A call, from its head to the end of its stream.

    `fields` are its headers, `size` is the length of its message, once that is known. It is `whole`
    when its client has sent all, and `ended` when its status is queued. `since` is the time of its
    beginning and, with an answer, of the last progress of its client, to which `unread` bytes are
    left.
    """

    def __init__(
        self, name: str, stream: int, fields: Sequence[tuple[bytes, bytes]], service: Service
    ) -> None:
        headers = {
            key.decode(): value.decode("latin-1")
            for key, value in fields
            if key[0] != 0x3A and key not in _OWN
        }
        super().__init__(name, headers, service)
        self.stream = stream
        self.fields = fields
        self.size = 0
        self.encoding = b"identity"
        self.task: asyncio.Task[None] | None = None
        self.whole = self.has_head = self.ended = False
        self.deadline = self.unread = inf
        self.since = time.monotonic()

    def values(self, header: str) -> Sequence[str]:
        return [value.decode("latin-1") for key, value in self.fields if key == header.encode()]


class _Connection(Connection):
    """A connection: bytes in, calls out, answers as they are ready.

    With `refused`, this error answers every call except those for health.
    """

    _transport: asyncio.Transport

    def __init__(self, server: "_Http2Server", peer: str, refused: RequestError | None) -> None:
        self._server = server
        self._service = server.service
        self._refused = refused
        self.peer = peer
        self._h2 = ngh2.Connection(ngh2.Role.SERVER, _CONFIGURATION)
        self.calls: dict[int, _Call] = {}
        self._reading: asyncio.Task[None] | None = None
        self._has_called = False
        self._flushes = self._paused = self._over = False
        self._began = self._heard = self._active = time.monotonic()
        """The times of its beginning, of the client's last bytes, and of the last call's end."""
        self._unread, self._unread_since = 0, inf
        """Bytes that the system does not take for the client, and since when there are so many."""
        self._closes = self._pinged = inf
        """The times at which it ends, whatever is left, and of a ping without an answer."""

    # Callbacks of the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is not a subclass
        self.opening = None
        self._began = self._heard = self._active = time.monotonic()
        self._h2.initiate_connection(self._server.settings)
        self._h2.set_local_window_size(_CONNECTION_WINDOW)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._drop()
        self._set_unread(0)
        self._server.lost(self)

    def data_received(self, data: bytes) -> None:
        self._heard = time.monotonic()
        self._receive(memoryview(data))

    def _receive(self, data: memoryview) -> None:
        """Take what has come. After many frames, leave the rest for a turn of its own."""
        events = 0
        while data and not self._over:
            if events > _TURN:
                self._transport.pause_reading()
                self._reading = asyncio.get_running_loop().create_task(self._go_on(data))
                break
            try:
                self._h2.receive_data(data[:_SLICE])
            except ngh2.NGH2Error as error:
                _log.debug("a connection broke the rules of HTTP/2: %r", error)
                self._server.ended("HTTP/2")
                self.abort()
                return
            events += self._take_events()
            data = data[_SLICE:]
        if not self._flushes:
            self._flush()

    async def _go_on(self, data: memoryview) -> None:
        await self._service.budget.turn()
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._receive(data)

    def pause_writing(self) -> None:
        self._paused = True
        self._set_unread(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._paused = False
        self._set_unread(0)
        self._flush()

    # Called by the server

    @property
    def idle(self) -> bool:
        return not self.calls

    @property
    def waits(self) -> tuple[int, float] | None:
        if self.calls or self._unread:
            return None
        return (0, self._active) if self._has_called else (1, self._began)

    def end(self, seconds: float = AGE_GRACE) -> None:
        """Ask the client to reconnect, and end once its calls, and what is written, are over, after
        this many seconds at most."""
        if not self._over and self._closes == inf:
            self._closes = time.monotonic() + seconds
            self._h2.send_goaway()
            self._flush_soon()

    def abort(self) -> None:
        self._drop()
        if self.opening is not None:
            self.opening.cancel()
        else:
            self._transport.abort()

    def check(self, now: float) -> None:
        limits = self._service.limits
        if self._unread:
            unread = self._transport.get_write_buffer_size()
            if unread <= self._unread - _PROGRESS:
                self._set_unread(unread)
            elif now >= self._unread_since + limits.write_timeout:
                self._server.ended("write timeout")
                self.abort()
        if now >= self._closes or now >= self._pinged + limits.head_timeout:
            self.abort()
        if self._over or self.opening is not None:
            return
        if not self._has_called and now >= self._began + limits.head_timeout:
            self._server.ended("head timeout")
            self.end(0)
        elif not self.calls and now >= self._active + limits.idle_timeout:
            self._server.ended("idle timeout")
            self.end(0)
        elif now >= self._began + MAX_AGE:
            self.end()
        elif self._pinged == inf and now >= self._heard + limits.idle_timeout:
            self._pinged = now
            self._h2.ping()
        for call in list(self.calls.values()):
            self._check_call(call, now)
        self._flush_soon()

    def _check_call(self, call: _Call, now: float) -> None:
        """End a call that is late, or whose answer is not read."""
        limits = self._service.limits
        if call.ended:
            unread = self._h2.queued_body_size(call.stream)
            if not (unread or call.whole or self._paused):  # the rest of its message is not needed
                self._h2.reset_stream(call.stream, ngh2.ErrorCode.NO_ERROR)
            elif unread <= call.unread - _PROGRESS:
                call.unread, call.since = unread, now
            elif now >= call.since + limits.write_timeout:
                self._server.ended("write timeout")
                self._h2.reset_stream(call.stream, ngh2.ErrorCode.CANCEL)
        elif now >= call.deadline:
            self._fail(call, StatusError(code_pb2.DEADLINE_EXCEEDED, "Deadline Exceeded"))
            if call.task is not None:
                call.task.cancel()
        elif not call.whole and call.name != REFLECT and now >= call.since + limits.body_timeout:
            seconds = limits.body_timeout
            text = f"the message did not arrive within the body_timeout of {seconds:g} s"
            self._refuse(call, RefusedError(text, 408, Refused.BODY_TIMEOUT))

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
            self._on_closed(self.calls.pop(event.stream_id, None))
        elif isinstance(event, ngh2.RequestReceived):
            self._on_request(event)
        elif isinstance(event, ngh2.TrailersReceived):
            if (call := self.calls.get(event.stream_id)) is not None:
                self._on_end(call)
        elif isinstance(event, ngh2.PingAcknowledged):
            self._pinged = inf
        elif isinstance(event, ngh2.ConnectionClosed):
            self._drop()
            self._closes = time.monotonic() + self._service.limits.write_timeout
            self._transport.close()

    def _on_request(self, event: ngh2.RequestReceived) -> None:
        self._has_called = True
        head = dict(event.headers)
        if not head.get(b"content-type", b"").startswith(b"application/grpc"):
            self._h2.send_response(event.stream_id, ((b":status", b"415"),), end_stream=True)
            return
        name = _METHODS.get(head.get(b":path", b""), "")
        call = _Call(name, event.stream_id, event.headers, self._service)
        call.encoding = head.get(b"grpc-encoding", b"identity")
        self.calls[event.stream_id] = call
        self._server.calls += 1
        if not name:
            self._fail(call, StatusError(code_pb2.UNIMPLEMENTED, "Method not found!"))
            return
        try:
            self._service.begin(call)
            if name != CHECK:
                self._admit()
            if (timeout := head.get(b"grpc-timeout")) is not None:
                call.deadline = call.since + _seconds(timeout)
        except RequestError as error:
            self._refuse(call, error)
        else:
            if event.end_stream:
                self._on_end(call)

    def _admit(self) -> None:
        """Raise a RequestError if the connection, or its call, is one too many."""
        if self._refused is not None:
            raise self._refused
        self._server.admit(self)

    def refuse_arriving(self, error: RequestError) -> bool:
        """End the call whose message has been arriving longest. Return False if there is none."""
        for call in self.calls.values():
            if not (call.whole or call.ended):
                self._refuse(call, error)
                return True
        return False

    def _on_data(self, call: _Call, data: bytes) -> None:
        if not call.body:
            call.body = data
        else:  # a bytearray grows without a copy
            call.body = call.body if isinstance(call.body, bytearray) else bytearray(call.body)
            call.body += data
        try:
            call.size = call.size or self._size_at(call, 0)
            if call.size and call.name == REFLECT:
                self._reflect(call)
            elif call.size and len(call.body) > call.size:
                raise InvalidRequestError("the call has more than one message")
            elif call.name == INFER:
                call.hold(len(data))
        except RequestError as error:
            self._refuse(call, error)

    def _size_at(self, call: _Call, at: int) -> int:
        """Return the size of the message that begins there, with its prefix; 0 if it is unknown.
        Raises a RequestError for one that is too large."""
        prefix = call.body[at : at + 5]
        if len(prefix) < 5:
            return 0
        size = int.from_bytes(prefix[1:], "big")
        self._service.check_size(call, size)
        return 5 + size

    def _on_end(self, call: _Call) -> None:
        """Begin a call, whose message is whole."""
        call.whole = True
        if call.ended:
            return
        if call.name == REFLECT:
            self._finish(call)
        elif not call.size or len(call.body) != call.size:
            self._refuse(call, InvalidRequestError("the call does not have one whole message"))
        else:
            work = self._watch(call) if call.name == WATCH else self._answer(call)
            call.task = asyncio.get_running_loop().create_task(work)

    def _on_closed(self, call: _Call | None) -> None:
        """Forget a call whose stream is closed, by its end or by its client."""
        self._active = time.monotonic()
        if call is None:
            return
        self._server.calls -= 1
        if not call.ended:
            call.ended = True
            if call.task is None:
                self._service.abandoned(call)
            else:
                call.task.cancel()
        call.release()

    def _drop(self) -> None:
        """Forget all calls: the connection is over."""
        self._over = True
        for call in self.calls.values():
            self._on_closed(call)
        self.calls.clear()

    async def _answer(self, call: _Call) -> None:
        try:
            try:
                call.body = _message(call.body, call.encoding, self._service.max_message)
            except RequestError as error:
                raise self._service.failed(call, error) from None
            if call.deadline != inf:
                call.timeout = max(0.0, call.deadline - time.monotonic())
            answer = await self._service.answer(call)
        except StatusError as error:
            self._fail(call, error)
        else:
            self._send(call, answer)
            self._finish(call)

    async def _watch(self, call: _Call) -> None:
        try:
            async for answer in self._service.watch(bytes(call.body[5:])):
                self._send(call, answer)
        except StatusError as error:
            self._fail(call, error)
        else:
            self._finish(call)

    def _reflect(self, call: _Call) -> None:
        """Answer the messages of a stream that have come. Raises a RequestError."""
        at = 0
        while call.size and at + call.size <= len(call.body):
            if self._h2.queued_body_size(call.stream) > _MAX_UNREAD:
                raise OverloadedError("read the answers of this stream before you ask for more")
            frame = call.body[at : at + call.size]
            try:
                message = bytes(_message(frame, call.encoding, MAX_METADATA_BYTES))
                self._send(call, self._service.reflect(message))
            except StatusError as error:
                self._fail(call, error)
                return
            at += call.size
            call.size = self._size_at(call, at)
        call.body = call.body[at:]

    # Answers

    def _send(self, call: _Call, message: bytes) -> None:
        if not call.ended:
            self._send_head(call)
            self._h2.send_data(call.stream, b"\0" + len(message).to_bytes(4, "big") + message)
            self._flush_soon()

    def _send_head(self, call: _Call) -> None:
        if not call.has_head:
            call.has_head = True
            self._h2.send_response(call.stream, _HEAD + _encoded(call.initial))

    def _finish(self, call: _Call) -> None:
        """End a call with the status OK."""
        if not call.ended:
            call.ended = True
            self._send_head(call)
            self._h2.send_trailers(call.stream, (_OK, *_encoded(call.trailing)))
            self._flush_soon()

    def _refuse(self, call: _Call, error: RequestError) -> None:
        """End a call, whose message is not whole, with an error."""
        self._fail(call, self._service.failed(call, error))

    def _fail(self, call: _Call, error: StatusError) -> None:
        """End a call with a status that is not OK."""
        if call.ended:
            return
        call.ended = True
        call.release()
        status = (
            (b"grpc-status", b"%d" % error.code),
            (b"grpc-message", quote(error.text, safe=_PRINTABLE).encode()),
            *_encoded(error.metadata),
        )
        if call.initial:  # with the status, they would arrive as trailing metadata
            self._send_head(call)
        if call.has_head:
            self._h2.send_trailers(call.stream, status)
        else:
            self._h2.send_response(call.stream, _HEAD + status, end_stream=True)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushes:
            self._flushes = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Write what is ready, for as long as the client reads."""
        self._flushes = False
        if self._over:
            return
        try:
            while not self._paused and (data := self._h2.data_to_send(_MAX_WRITE)):
                self._transport.write(data)
        except ngh2.NGH2Error:
            _log.exception("a connection cannot go on")
            self.abort()
        else:
            self._take_events()

    def _set_unread(self, size: int) -> None:
        """Charge what the system does not take to the budget, and restart its timeout."""
        self._service.budget.held += size - self._unread
        self._unread, self._unread_since = size, time.monotonic()


def _message(frame: bytes | bytearray, coding: bytes, most: int) -> bytes | memoryview:
    """Return the message in a whole frame of gRPC; it may have `most` bytes. Raises a
    RequestError."""
    if not frame[0]:
        large = len(frame) > _COPIED
        return memoryview(frame).toreadonly()[5:] if large else bytes(frame[5:])
    if coding not in (b"gzip", b"deflate"):
        raise RefusedError("compress with gzip, deflate or not", 501, Refused.CONTENT_ENCODING)
    decompressor = zlib.decompressobj(31 if coding == b"gzip" else 15)
    try:
        message = decompressor.decompress(frame[5:], most + 1)
    except zlib.error as error:
        raise InvalidRequestError("the message cannot be decompressed") from error
    if len(message) > most:
        text = f"Received message larger than max (more than {most} decompressed vs. {most})"
        raise RefusedError(text, 413, Refused.MAX_BODY)
    if not decompressor.eof:
        raise InvalidRequestError("the message ends before its compressed data do")
    return message


def _seconds(timeout: bytes) -> float:
    """Return a client's timeout in seconds. Raises InvalidRequestError if it cannot be read."""
    found = _TIMEOUT.fullmatch(timeout)
    if found is None:
        raise InvalidRequestError(f"grpc-timeout cannot be read: {timeout[:40]!r}")
    return int(found[1]) * _UNITS[found[2]]


@lru_cache(256)
def _encoded(metadata: Metadata) -> tuple[tuple[bytes, bytes], ...]:
    """Return metadata as headers; bytes are in base64."""
    return tuple(
        (name.encode(), value.encode() if isinstance(value, str) else base64.b64encode(value))
        for name, value in metadata
    )


class _Http2Server(ConnectionServer):
    def __init__(self, service: Service, certificate: Certificate | None) -> None:
        tls = None if certificate is None else lambda: certificate.http2_context
        super().__init__(service.limits, service.metrics, tls)
        self.service = service
        self.calls = 0
        """Calls of all connections, from their heads to the ends of their streams."""
        self.max_calls = service.limits.max_rpcs + service.limits.max_connections + RESERVE
        self.settings = {
            Setting.MAX_CONCURRENT_STREAMS: service.limits.max_rpcs + RESERVE,
            Setting.INITIAL_WINDOW_SIZE: _WINDOW,
            Setting.MAX_FRAME_SIZE: _FRAME,
            Setting.MAX_HEADER_LIST_SIZE: _MAX_HEAD,
        }

    def connect(self, peer: str, refused: RequestError | None) -> Connection:
        return _Connection(self, peer, refused)

    def admit(self, connection: _Connection) -> None:
        """Raise OverloadedError for a call of this connection that is one too many. If another has
        more calls, one of those that still arrive ends in its place."""
        most = self.max_calls
        if self.calls <= most:
            return
        text = f"the server has {most:,} gRPC calls, some of which still arrive; try again later"
        error = OverloadedError(text, why=Refused.MAX_RPCS)
        connections = cast(set[_Connection], self._connections)
        busiest = max(connections, key=lambda each: len(each.calls))
        if busiest is connection or not busiest.refuse_arriving(error):
            raise error

    async def leave(self) -> None:
        await super().leave()
        for connection in list(self._connections):
            if connection.opening is None:
                connection.end()


class Transport:
    """Serves a service over HTTP/2. See the other transport, over_grpcio."""

    def __init__(self, service: Service, *, certificate: Certificate | None, reuse_port: bool):
        self._server = _Http2Server(service, certificate)
        self._scheme = "grpc" if certificate is None else "grpcs"
        self._reuse_port = reuse_port

    async def start(self, host: str, port: int) -> str:
        """Listen there; return the URL. Raises UserError if that fails."""
        listening = listen(host, port, reuse_port=self._reuse_port, use=" for gRPC")
        self._server.start(listening)
        return url_of(listening, self._scheme)

    async def stop(self, grace: float) -> None:
        """Answer the calls in flight, for `grace` seconds, and close."""
        await self._server.stop(grace)
