"""The Open Inference Protocol over gRPC, on the event loop of the frontend it serves.

Beside the protocol's own service it has grpc.health.v1 and reflection, as gRPC tools expect.
Errors have the texts of REST, and the status codes that stand for its statuses.
"""

import asyncio
from math import ceil

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from parity_models.errors import UserError
from parity_models.serving.asked import Answerer
from parity_models.serving.grpc.calls import RESERVE, Calls
from parity_models.serving.grpc.health import Health
from parity_models.serving.grpc.inference_pb2 import (
    DESCRIPTOR,
)
from parity_models.serving.grpc.methods import handler_of
from parity_models.serving.grpc.service import SERVICE, InferenceService
from parity_models.serving.grpc.unread import UnreadAnswers
from parity_models.serving.http.server import GRACE
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.served_model import ServedModel

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_MAX_MESSAGE = 2**31 - 1
"""Bytes that gRPC can be told a message may have."""

_MAX_MILLISECONDS = 2**31 - 1
"""The longest time that gRPC can be told."""


class GrpcServer:
    """Serves a frontend's model, within `limits`; `budget` counts the bytes of all requests.

    Made on the event loop that it is to run on, and started and stopped once.
    """

    def __init__(
        self,
        frontend: Answerer,
        model: ServedModel,
        metrics: Metrics,
        limits: Limits,
        budget: ByteBudget,
    ) -> None:
        self._server = grpc.aio.server(
            options=_options(limits), maximum_concurrent_rpcs=limits.max_rpcs + RESERVE
        )
        service = InferenceService(frontend, model, metrics)
        ended = metrics.connections_ended.labels("write timeout").inc
        self._unread = UnreadAnswers(budget, limits.write_timeout, ended)
        handler = handler_of(service, Calls(limits, budget), self._unread)
        self._server.add_generic_rpc_handlers((handler,))
        self._stopping = asyncio.Event()
        health = Health(frontend, self._stopping)
        health_pb2_grpc.add_HealthServicer_to_server(health, self._server)
        names = (SERVICE.full_name, _HEALTH, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, _reflected_pool())

    async def start(self, host: str, port: int) -> str:
        """Listen there (port 0: any that is free); returns the URL, as grpc://127.0.0.1:8001.

        Raises UserError if that cannot be.
        """
        host = f"[{host}]" if ":" in host else host
        try:
            port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise UserError(
                f"cannot listen on {host} port {port} for gRPC; choose another host or port (port "
                "0 takes any that is free)"
            ) from error
        self._unread.port = port
        await self._server.start()
        return f"grpc://{host}:{port}"

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
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
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
