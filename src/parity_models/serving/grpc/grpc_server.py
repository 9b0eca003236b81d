"""The Open Inference Protocol over gRPC, on the event loop of the models it serves.

Beside the protocol's own service it has grpc.health.v1 and reflection, as gRPC tools expect.
Errors have the texts of REST, and the status codes that stand for its statuses.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from math import ceil
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from parity_models.errors import UserError
from parity_models.serving.access import Tokens
from parity_models.serving.errors import UnauthorizedError
from parity_models.serving.grpc.calls import RESERVE, Calls, Context, code_of
from parity_models.serving.grpc.inference_pb2 import DESCRIPTOR
from parity_models.serving.grpc.service import HEALTH, SERVICE, Health, InferenceService, handlers
from parity_models.serving.http import GRACE
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import Models
from parity_models.serving.refusals import Refused

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing

_MAX_MESSAGE = 2**31 - 1
"""The largest limit of a message, in bytes, that gRPC takes."""

_MAX_MILLISECONDS = 2**31 - 1
"""The longest time that gRPC takes."""

_MAX_AGE, _AGE_GRACE = 600.0, 120.0
"""Seconds after which clients are asked to connect anew, and those that calls then have to end. No
answer stays unread for longer."""

_OPEN = (f"/{SERVICE.full_name}/ServerLive", f"/{SERVICE.full_name}/ServerReady")
"""Methods that need no token, as those of health."""

_Handler = Any
"""grpc.RpcMethodHandler, which is generic in its stub alone."""


class GrpcServer:
    """Serves `models`, within `limits`; `budget` counts the bytes of all requests.

    With `tokens`, clients that show none of them may ask for the server's health and nothing else.
    Made on the event loop that it is to run on, and started and stopped once.
    """

    def __init__(
        self,
        models: Models,
        metrics: Metrics,
        limits: Limits,
        budget: ByteBudget,
        *,
        tokens: Tokens | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._server = grpc.aio.server(
            interceptors=() if tokens is None else (_TokenCheck(tokens, metrics),),
            options=_options(limits),
            maximum_concurrent_rpcs=limits.max_rpcs + limits.max_connections + RESERVE,
        )
        calls = Calls(limits, budget, unsent=metrics.refusals.labels(Refused.NO_MESSAGE).inc)
        self._stopping = asyncio.Event()
        service, health = InferenceService(models, metrics), Health(models, calls, self._stopping)
        for each in handlers(service, health, calls, metrics, tracing):
            self._server.add_generic_rpc_handlers((each,))
        names = (SERVICE.full_name, HEALTH, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, _reflected_pool())

    async def start(self, host: str, port: int, tls: grpc.ServerCredentials | None = None) -> str:
        """Listen there (port 0: any that is free); return the URL, as grpc://127.0.0.1:8001, or
        grpcs:// with `tls`.

        Raises UserError if that cannot be.
        """
        host = f"[{host}]" if ":" in host else host
        try:
            if tls is None:
                port = self._server.add_insecure_port(f"{host}:{port}")
            else:
                port = self._server.add_secure_port(f"{host}:{port}", tls)
        except RuntimeError as error:
            raise UserError(
                f"cannot listen on {host} port {port} for gRPC; choose another host or port (port "
                "0 takes any that is free)"
            ) from error
        await self._server.start()
        return f"{'grpc' if tls is None else 'grpcs'}://{host}:{port}"

    async def stop(self) -> None:
        """Answer what is under way, for some seconds, and close."""
        self._stopping.set()
        await self._server.stop(GRACE)


class _TokenCheck(grpc.aio.ServerInterceptor):
    """Refuses calls whose metadata `authorization` holds none of the `tokens`, unread."""

    def __init__(self, tokens: Tokens, metrics: Metrics) -> None:
        self._tokens = tokens
        self._metrics = metrics
        self._refusing: _Handler = grpc.stream_unary_rpc_method_handler(_refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        details: grpc.HandlerCallDetails,
    ) -> _Handler:
        method = str(details.method)
        if method in _OPEN or method.startswith(f"/{HEALTH}/"):
            return await continuation(details)
        shown = [value for key, value in details.invocation_metadata if key == "authorization"]
        if len(shown) == 1 and self._tokens.admits(str(shown[0])):
            return await continuation(details)
        self._metrics.unauthorized.inc()
        return self._refusing


async def _refuse(messages: AsyncIterator[bytes], context: Context) -> NoReturn:
    error = UnauthorizedError()
    await context.abort(code_of(error), str(error))
    raise AssertionError("abort raises")


def _options(limits: Limits) -> list[tuple[str, int]]:
    """The limits that gRPC itself keeps; those of headers and of pings are its own defaults."""
    return [
        ("grpc.max_receive_message_length", min(limits.max_body, _MAX_MESSAGE)),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_concurrent_streams", limits.max_rpcs + RESERVE),
        ("grpc.server_handshake_timeout_ms", _milliseconds(limits.head_timeout)),
        ("grpc.max_connection_idle_ms", _milliseconds(limits.idle_timeout)),
        ("grpc.max_connection_age_ms", _milliseconds(_MAX_AGE)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(_AGE_GRACE)),
        # A client that is gone or has stopped is found, whatever call or answer it left.
        ("grpc.keepalive_time_ms", _milliseconds(limits.idle_timeout)),
        ("grpc.keepalive_timeout_ms", _milliseconds(limits.head_timeout)),
    ]


def _milliseconds(seconds: float) -> int:
    return min(ceil(seconds * 1e3), _MAX_MILLISECONDS)


def _reflected_pool() -> DescriptorPool:
    """A pool that has all the services there are."""
    pool = DescriptorPool()
    for file in (DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)
    return pool
