"""grpc.health.v1: is the server ready, asked once or watched?"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from parity_models.serving.grpc.service import SERVICE, Context
from parity_models.serving.models import Models

_HEALTH_INTERVAL = 0.2
"""Seconds between two looks at the readiness that somebody watches."""


class Health(health_pb2_grpc.HealthServicer):
    """Ready or not, of the server ("") and of its services, until it is `stopping`."""

    def __init__(self, models: Models, stopping: asyncio.Event) -> None:
        self._models = models
        self._stopping = stopping

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in ("", SERVICE.full_name):
            await context.abort(
                StatusCode.NOT_FOUND, f"this server has no service {request.service[:80]!r}"
            )
        return self._health()

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        if request.service not in ("", SERVICE.full_name):
            unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            yield health_pb2.HealthCheckResponse(status=unknown)
            return
        told = None
        while True:
            stopping = self._stopping.is_set()
            health = self._health()
            if health != told:
                yield health
                told = health
            if stopping:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEALTH_INTERVAL):
                    await self._stopping.wait()

    def _health(self) -> health_pb2.HealthCheckResponse:
        response = health_pb2.HealthCheckResponse
        ready = not self._models.why_unready and not self._stopping.is_set()
        return response(status=response.SERVING if ready else response.NOT_SERVING)
