"""gRPC by grpcio, on the event loop.

gRPC itself bounds the sizes of messages, the connections, and their times, but copies a message
twice before it can be checked, and does not say what arrives.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from math import ceil
from typing import Any, NoReturn
from weakref import WeakValueDictionary

import grpc
from grpc.aio import ServicerContext

from parity_models.errors import UserError
from parity_models.serving.access import Certificate
from parity_models.serving.errors import InvalidRequestError, Refused, RefusedError, RequestError
from parity_models.serving.grpc.service import (
    AGE_GRACE,
    INFER,
    MAX_AGE,
    METHODS,
    REFLECT,
    RESERVE,
    WATCH,
    Rpc,
    Service,
    StatusError,
)
from parity_models.serving.limits import Limits

Context = ServicerContext[Any, Any]

BACKLOG = 10_000
"""Calls that have arrived and wait for this process; beyond them, gRPC cancels new ones at random.
At its default of 1,000, a client that resets streams at once gets others' calls cancelled."""

_MAX_INT = 2**31 - 1
"""The largest limit of a message, in bytes, and the longest time, in ms, that gRPC takes."""

_STATUS = {code.value[0]: code for code in grpc.StatusCode}


class _Call(Rpc):
    def __init__(self, name: str, context: Context, service: Service) -> None:
        self._metadata = [(key, str(value)) for key, value in context.invocation_metadata() or ()]
        super().__init__(name, dict(self._metadata), service)

    def values(self, header: str) -> Sequence[str]:
        return [value for key, value in self._metadata if key == header]


class Transport:
    """Serves a service over HTTP/2. Make it on the event loop that it is to run on."""

    def __init__(self, service: Service, *, certificate: Certificate | None, reuse_port: bool):
        self._service = service
        self._certificate = certificate
        limits = service.limits
        self._may_arrive = max(1, limits.max_in_flight // limits.max_body)
        self._arriving = asyncio.Semaphore(self._may_arrive)
        self._arriving_from: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._server = grpc.aio.server(
            options=[*_options(limits), ("grpc.so_reuseport", int(reuse_port))],
            maximum_concurrent_rpcs=limits.max_rpcs + limits.max_connections + RESERVE,
        )
        by_service: dict[str, dict[str, Any]] = {}
        for path, name in METHODS.items():
            _, of, method = path.split("/")
            by_service.setdefault(of, {})[method] = self._handler(name)
        for of, handlers in by_service.items():
            handler = grpc.method_handlers_generic_handler(of, handlers)
            self._server.add_generic_rpc_handlers((handler,))

    def _handler(self, name: str) -> Any:
        if name == WATCH:
            return grpc.unary_stream_rpc_method_handler(self._watch)
        if name == REFLECT:
            return grpc.stream_stream_rpc_method_handler(self._reflect)
        # A stream of one message, the same to clients, is read when the server chooses to.
        is_inference = name == INFER
        make = (
            grpc.stream_unary_rpc_method_handler
            if is_inference
            else grpc.unary_unary_rpc_method_handler
        )
        return make(partial(self._answer, name))

    async def start(self, host: str, port: int) -> str:
        """Listen there; return the URL. Raises UserError if that fails."""
        host = f"[{host}]" if ":" in host else host
        try:
            if self._certificate is None:
                port = self._server.add_insecure_port(f"{host}:{port}")
            else:
                credentials = _credentials(self._certificate)
                port = self._server.add_secure_port(f"{host}:{port}", credentials)
        except RuntimeError as error:
            raise UserError(
                f"cannot listen on {host} port {port} for gRPC; choose another host or port (port "
                "0 takes any that is free)"
            ) from error
        await self._server.start()
        return f"{'grpc' if self._certificate is None else 'grpcs'}://{host}:{port}"

    async def stop(self, grace: float) -> None:
        """Answer the calls in flight, for `grace` seconds, and close."""
        await self._server.stop(grace)

    async def _answer(self, name: str, data: Any, context: Context) -> bytes:
        """Answer a call. gRPC itself would log every request that cannot be read, and send the text
        of any exception to the client."""
        rpc = _Call(name, context, self._service)
        done: Any = lambda _: rpc.release()  # noqa: E731  # stubs want a class of their own
        context.add_done_callback(done)
        status = None
        try:
            await self._receive(rpc, data, context)
            del data
            answer = await self._service.answer(rpc)
        except StatusError as error:
            status = error.with_traceback(None)
        if status is not None:
            await _end(context, status)
        context.set_trailing_metadata(rpc.trailing)
        return answer

    async def _receive(self, rpc: Rpc, data: Any, context: Context) -> None:
        """Admit a call, and receive its message. Raises StatusError."""
        try:
            self._service.begin(rpc)
            if rpc.initial:
                await context.send_initial_metadata(rpc.initial)
            rpc.body = await self._read(context) if rpc.name == INFER else data
            self._service.check_size(rpc, len(rpc.body))
            if rpc.name == INFER:
                rpc.hold(len(rpc.body))
        except RequestError as error:
            raise self._service.failed(rpc, error) from None
        except asyncio.CancelledError:
            self._service.abandoned(rpc)
            raise
        rpc.timeout = context.time_remaining()

    async def _read(self, context: Context) -> bytes:
        """Return the message of a call. Its size is unknown while it arrives, so few arrive at a
        time, and half as many from one address, which bounds their bytes. Raises a RequestError."""
        address = context.peer().rpartition(":")[0]
        own = self._arriving_from.get(address)
        if own is None:
            few = max(1, self._may_arrive // 2)
            own = self._arriving_from[address] = asyncio.Semaphore(few)
        seconds = self._service.limits.body_timeout
        try:
            async with asyncio.timeout(seconds), own, self._arriving:
                data = await context.read()
        except TimeoutError as error:
            text = f"the message did not arrive within the body_timeout of {seconds:g} s"
            raise RefusedError(text, 408, Refused.BODY_TIMEOUT) from error
        if not isinstance(data, bytes):
            raise InvalidRequestError("the call has no message")
        return data

    async def _watch(self, data: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            async for answer in self._service.watch(data):
                yield answer
        except StatusError as error:
            await _end(context, error)

    async def _reflect(
        self, messages: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        try:
            async for message in messages:
                yield self._service.reflect(message)
        except StatusError as error:
            await _end(context, error)


async def _end(context: Context, error: StatusError) -> NoReturn:
    """End a call with this error, even if its client has just gone."""
    try:
        await context.abort(_STATUS[error.code], error.text, error.metadata)
    except grpc.aio.AbortError:
        raise
    except Exception as gone:  # gRPC would log it
        raise asyncio.CancelledError from gone


def _options(limits: Limits) -> list[tuple[str, int]]:
    """Return the limits that gRPC itself enforces; headers and pings keep its defaults."""
    times = {
        "server_handshake_timeout": limits.head_timeout,
        "max_connection_idle": limits.idle_timeout,
        "max_connection_age": MAX_AGE,
        "max_connection_age_grace": AGE_GRACE,
        # Find clients that are gone or have stopped, even with calls or answers left.
        "keepalive_time": limits.idle_timeout,
        "keepalive_timeout": limits.head_timeout,
    }
    return [
        # gRPC copies a whole message twice, on the event loop, before it can be checked.
        ("grpc.max_receive_message_length", min(max(1, limits.max_body // 2), _MAX_INT)),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_concurrent_streams", limits.max_rpcs + RESERVE),
        ("grpc.server.max_pending_requests", BACKLOG),
        ("grpc.server.max_pending_requests_hard_limit", 2 * BACKLOG),
        *((f"grpc.{name}_ms", min(ceil(time * 1e3), _MAX_INT)) for name, time in times.items()),
    ]


def _credentials(certificate: Certificate) -> grpc.ServerCredentials:
    """Return credentials with which a server shows the newest certificate."""
    shown = certificate.pem

    def newer() -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC, on its own thread, for each new connection."""
        nonlocal shown
        if shown is certificate.pem:
            return None
        shown = certificate.pem
        return grpc.ssl_server_certificate_configuration([shown])

    return grpc.dynamic_ssl_server_credentials(
        grpc.ssl_server_certificate_configuration([shown]),
        newer,  # type: ignore[arg-type]  # None means no change, which grpc's stubs leave out
    )
