"""The Open Inference Protocol over gRPC, on the event loop of the models it serves.

Beside the protocol's own service it has grpc.health.v1 and reflection, as gRPC tools expect.
Errors have the texts of REST, and the status codes that stand for its statuses.
"""

import asyncio
from math import ceil
from typing import TYPE_CHECKING

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from parity_models.errors import UserError
from parity_models.serving.grpc.bystanders import BystandersBounded
from parity_models.serving.grpc.calls import RESERVE, Calls
from parity_models.serving.grpc.connections import Connections
from parity_models.serving.grpc.health import Health
from parity_models.serving.grpc.inference_pb2 import (
    DESCRIPTOR,
)
from parity_models.serving.grpc.methods import handler_of
from parity_models.serving.grpc.service import SERVICE, InferenceService
from parity_models.serving.grpc.tokens_shown import TokensShown
from parity_models.serving.grpc.unread import UnreadAnswers
from parity_models.serving.http.http_server import GRACE
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import Models
from parity_models.serving.refusals import Refused
from parity_models.serving.tokens import Tokens

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_MAX_MESSAGE = 2**31 - 1
"""Bytes that gRPC can be told a message may have."""

_MAX_MILLISECONDS = 2**31 - 1
"""The longest time that gRPC can be told."""


class GrpcServer:
    """Serves `models`, within `limits`; `budget` counts the bytes of all requests.

    With `tokens`, who shows none of them is told the server's health and nothing else.

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
        refused = metrics.refusals.labels
        calls = Calls(limits, budget, unsent=refused(Refused.NO_MESSAGE).inc)
        shown = () if tokens is None else (TokensShown(tokens, metrics),)
        self._server = grpc.aio.server(
            interceptors=(*shown, BystandersBounded(calls, metrics)),
            options=_options(limits),
            maximum_concurrent_rpcs=limits.max_rpcs + limits.max_connections + RESERVE,
        )
        service = InferenceService(models, metrics)
        ended = metrics.connections_ended.labels("write timeout").inc
        self._connections = Connections(limits.max_connections)
        unread = UnreadAnswers(budget, limits.write_timeout, self._connections, ended)
        handler = handler_of(service, calls, self._connections, unread, tracing)
        self._server.add_generic_rpc_handlers((handler,))
        self._stopping = asyncio.Event()
        health = Health(models, self._stopping)
        health_pb2_grpc.add_HealthServicer_to_server(health, self._server)
        names = (SERVICE.full_name, _HEALTH, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, _reflected_pool())

    async def start(self, host: str, port: int, tls: grpc.ServerCredentials | None = None) -> str:
        """Listen there (port 0: any that is free); returns the URL, as grpc://127.0.0.1:8001, or
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
        self._connections.port = port
        await self._server.start()
        return f"{'grpc' if tls is None else 'grpcs'}://{host}:{port}"

    async def stop(self) -> None:
        """Answer what is under way, for some seconds, and close."""
        self._stopping.set()
        await self._server.stop(GRACE)


def _options(limits: Limits) -> list[tuple[str, int]]:
    """What gRPC itself bounds. Its own bounds of headers and of pings stay as they are."""
    calls = limits.max_rpcs + RESERVE
    return [
        ("grpc.max_receive_message_length", min(limits.max_body, _MAX_MESSAGE)),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        ("grpc.max_allowed_incoming_connections", limits.max_connections + RESERVE),
        ("grpc.max_concurrent_streams", calls),
        ("grpc.server_handshake_timeout_ms", _milliseconds(limits.head_timeout)),
        ("grpc.max_connection_idle_ms", _milliseconds(limits.idle_timeout)),
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
