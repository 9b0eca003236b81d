"""gRPC by grpcio, on the event loop.

gRPC itself bounds the sizes of messages, the connections, and their times.
"""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from math import ceil
from typing import Any, NoReturn

import grpc
from grpc.aio import ServicerContext

from parity_models.errors import UserError
from parity_models.serving.access import Certificate
from parity_models.serving.errors import InvalidRequestError, Refused
from parity_models.serving.grpc.service import (
    AGE_GRACE,
    INFER,
    METHODS,
    REFLECT,
    RESERVE,
    WATCH,
    Failure,
    Rpc,
    Service,
)
from parity_models.serving.http import GRACE
from parity_models.serving.inference import Inference
from parity_models.serving.limits import Limits

Context = ServicerContext[Any, Any]

BACKLOG = 10_000
"""Calls that have arrived and wait for this process; beyond them, gRPC cancels new ones at random.
At its default of 1,000, a client that resets streams at once gets others' calls cancelled."""

_MAX_INT = 2**31 - 1
"""The largest limit of a message, in bytes, and the longest time, in ms, that gRPC takes."""

_STATUS = {code.value[0]: code for code in grpc.StatusCode}


class GrpcServer(Service, grpc.GenericRpcHandler):
    """Serves the models of `inference`, within `limits`."""

    def __init__(self, inference: Inference, limits: Limits, **options: Any) -> None:
        super().__init__(inference, limits, **options)
        self._arriving = asyncio.Semaphore(max(1, limits.max_in_flight // limits.max_body))

    async def start(self, host: str, port: int) -> str:
        limits = self.limits
        self._server = grpc.aio.server(
            handlers=(self,),
            options=[*_options(limits), ("grpc.so_reuseport", int(self._reuse_port))],
            maximum_concurrent_rpcs=limits.max_rpcs + limits.max_connections + RESERVE,
        )
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

    async def stop(self, grace: float = GRACE) -> None:
        self.stopping = True
        await self._server.stop(grace)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method. To clients, a stream of one message is that message."""
        path = handler_call_details.method
        if path not in METHODS:
            return None
        return grpc.stream_stream_rpc_method_handler(partial(self._handle, path))

    async def _handle(
        self, path: str, messages: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Answer a call. gRPC itself would log every request that cannot be read, and send the text
        of any exception to the client."""
        given = ((key, str(value)) for key, value in context.invocation_metadata() or ())
        rpc, failure = Rpc([(":path", path), *given], self), None
        name = rpc.name
        try:
            self.begin(rpc)
            if rpc.initial:
                await context.send_initial_metadata(rpc.initial)
            if name == REFLECT:
                async for message in messages:
                    yield self.reflect(message)
                return
            rpc.body = await (self._read(context) if name == INFER else context.read())
            if not isinstance(rpc.body, bytes):
                raise InvalidRequestError("the call has no message")
            self.check_size(rpc, len(rpc.body))
            if name == INFER:
                rpc.hold(len(rpc.body))
            rpc.timeout = context.time_remaining()
            if name == WATCH:
                async for answer in self.watch(rpc):
                    yield answer
            else:
                yield await self.answer(rpc)
                context.set_trailing_metadata(rpc.trailing)
        except asyncio.CancelledError:
            self.abandoned(rpc)
            raise
        except Exception as error:
            failure = self.failed(rpc, error)
        finally:
            rpc.release()
        if failure is not None:
            await _end(context, failure)

    async def _read(self, context: Context) -> Any:
        """Return the message of a call. Its size is unknown while it arrives, so few arrive at a
        time, which bounds their bytes. Raises a RequestError."""
        try:
            async with asyncio.timeout(self.limits.body_timeout), self._arriving:
                return await context.read()
        except TimeoutError as error:
            raise self.limits.late("the message", Refused.BODY_TIMEOUT) from error


async def _end(context: Context, failure: Failure) -> NoReturn:
    """End a call with this error, even if its client has just gone."""
    try:
        await context.abort(_STATUS[failure.code], failure.text, failure.metadata)
    except grpc.aio.AbortError:
        raise
    except Exception as gone:  # gRPC would log it
        raise asyncio.CancelledError from gone


def _options(limits: Limits) -> list[tuple[str, int]]:
    """Return the limits that gRPC itself enforces; headers and pings keep its defaults."""
    times = {
        "server_handshake_timeout": limits.head_timeout,
        "max_connection_idle": limits.idle_timeout,
        "max_connection_age": limits.max_age,
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

    def newest() -> grpc.ServerCertificateConfiguration:
        """Called by gRPC, on its own thread, for each new connection."""
        return grpc.ssl_server_certificate_configuration([certificate.pem])

    return grpc.dynamic_ssl_server_credentials(newest(), newest)
