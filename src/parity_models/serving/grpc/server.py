"""The Open Inference Protocol over gRPC, on the event loop of the frontend it serves.

Beside the protocol's own service it has grpc.health.v1 and reflection, as gRPC tools expect.
Errors have the texts of REST, and the status codes that stand for its statuses.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from grpc.aio import ServicerContext
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from parity_models import __version__
from parity_models.errors import UserError
from parity_models.serving.errors import InvalidRequestError, RequestError
from parity_models.serving.frontend import Frontend
from parity_models.serving.grpc.codec import decode_request, encode_response
from parity_models.serving.grpc.inference_pb2 import (
    DESCRIPTOR,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from parity_models.serving.http import GRACE
from parity_models.serving.metrics import Metrics
from parity_models.serving.served_model import PLATFORM, VERSION, ServedModel
from parity_models.serving.tenancy import with_tenant

_log = logging.getLogger(__name__)

SERVICE = DESCRIPTOR.services_by_name["GRPCInferenceService"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_HEALTH_INTERVAL = 0.2
"""Seconds between two looks at the readiness that somebody watches."""

CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    404: StatusCode.NOT_FOUND,
    413: StatusCode.RESOURCE_EXHAUSTED,
    500: StatusCode.INTERNAL,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
"""What a RequestError is in gRPC, by its HTTP status."""

_CLIENT_CLOSED = 499
"""The HTTP status that gRPC's CANCELLED stands for."""

_MAX_MESSAGE = 2**31 - 1
"""Bytes that gRPC can be told a message may have."""

MAX_DETAILS = 1000
"""Characters of an error that surely go through: they travel in a header, with a client's names
in them."""

_Context = ServicerContext[Any, Any]


class GrpcServer:
    """Serves a frontend's model; a message holds up to `max_message` bytes.

    Made on the event loop that it is to run on, and started and stopped once.
    """

    def __init__(
        self, frontend: Frontend, model: ServedModel, metrics: Metrics, max_message: int
    ) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", min(max_message, _MAX_MESSAGE)),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ]
        )
        self._server.add_generic_rpc_handlers(
            (_handler(InferenceService(frontend, model, metrics)),)
        )
        self._stopping = asyncio.Event()
        health = _Health(frontend, self._stopping)
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
        await self._server.start()
        return f"grpc://{host}:{port}"

    async def stop(self) -> None:
        """Answer what is under way, for some seconds, and close."""
        self._stopping.set()
        await self._server.stop(GRACE)


class InferenceService:
    """The methods of GRPCInferenceService, by their names there. They raise RequestErrors.

    What they need of a `context` is the client's time limit and metadata.
    """

    def __init__(self, frontend: Frontend, model: ServedModel, metrics: Metrics) -> None:
        self._frontend = frontend
        self._model = model
        self._metrics = metrics

    async def ServerLive(self, request: ServerLiveRequest, context: _Context) -> ServerLiveResponse:
        return ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: ServerReadyRequest, context: _Context
    ) -> ServerReadyResponse:
        return ServerReadyResponse(ready=self._frontend.ready)

    async def ServerMetadata(
        self, request: ServerMetadataRequest, context: _Context
    ) -> ServerMetadataResponse:
        return ServerMetadataResponse(name="parity-models", version=__version__)

    async def ModelReady(self, request: ModelReadyRequest, context: _Context) -> ModelReadyResponse:
        self._model.check_model(request.name, request.version)
        return ModelReadyResponse(ready=self._frontend.ready)

    async def ModelMetadata(
        self, request: ModelMetadataRequest, context: _Context
    ) -> ModelMetadataResponse:
        model = self._model
        model.check_model(request.name, request.version)
        inputs, outputs = (
            [
                ModelMetadataResponse.TensorMetadata(
                    name=spec.name, datatype=spec.datatype, shape=[-1, *spec.shape]
                )
            ]
            for spec in (model.input, model.output)
        )
        return ModelMetadataResponse(
            name=model.name,
            versions=[VERSION],
            platform=PLATFORM,
            inputs=inputs,
            outputs=outputs,
        )

    async def ModelInfer(self, request: ModelInferRequest, context: _Context) -> ModelInferResponse:
        status = 500
        try:
            response = await self._infer(request, context)
            status = 200
        except RequestError as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            status = _CLIENT_CLOSED
            raise
        finally:
            self._metrics.requests.labels(status).inc()
        return response

    async def _infer(self, request: ModelInferRequest, context: _Context) -> ModelInferResponse:
        model = self._model
        model.check_model(request.model_name, request.model_version)
        asked = decode_request(request, model)
        timeouts = (asked.timeout, context.time_remaining())
        timeout = min((each for each in timeouts if each is not None), default=None)
        asked = with_tenant(asked, model.tenant_header, partial(_metadata, context))
        answers = await self._frontend.infer(
            asked.rows, timeout, tenant=asked.tenant, exact=asked.exact
        )
        return encode_response(model, asked, answers.outputs, answers.sources)


class _Health(health_pb2_grpc.HealthServicer):
    """Ready or not, of the server ("") and of its services, until it is `stopping`."""

    def __init__(self, frontend: Frontend, stopping: asyncio.Event) -> None:
        self._frontend = frontend
        self._stopping = stopping

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in ("", SERVICE.full_name):
            await context.abort(
                StatusCode.NOT_FOUND, f"this server has no service {request.service[:80]!r}"
            )
        return self._health()

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: _Context
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
        ready = self._frontend.ready and not self._stopping.is_set()
        return response(status=response.SERVING if ready else response.NOT_SERVING)


def _metadata(context: _Context, key: str) -> Sequence[str]:
    """All values of the metadata that the client sent under `key`, which is in lower case."""
    return [str(value) for each, value in context.invocation_metadata() or () if each == key]


def _handler(service: InferenceService) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        SERVICE.full_name,
        {
            method.name: grpc.unary_unary_rpc_method_handler(
                _guarded(getattr(service, method.name), GetMessageClass(method.input_type)),
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
            for method in SERVICE.methods
        },
    )


def _guarded(
    answer: Callable[[Any, _Context], Awaitable[Message]], request: type[Message]
) -> Callable[[bytes, _Context], Awaitable[Message]]:
    """The method, for bytes, with its errors as gRPC's. (gRPC itself would log every request
    that cannot be read, and send the text of any exception to the client.)"""

    async def answered(data: bytes, context: _Context) -> Message:
        try:
            return await answer(read_message(request, data), context)
        except RequestError as error:
            await context.abort(CODES[error.status], str(error)[:MAX_DETAILS])
        except Exception as error:
            _log.error("a gRPC request failed", exc_info=error)
            await context.abort(
                StatusCode.INTERNAL, "the server failed to handle the request; its log says why"
            )

    return answered


def read_message(request: type[Message], data: bytes) -> Message:
    """Raises InvalidRequestError for what is no such message."""
    try:
        return request.FromString(data)
    except DecodeError as error:
        raise InvalidRequestError(f"the request is no {request.DESCRIPTOR.full_name}") from error


def _reflected_pool() -> DescriptorPool:
    """A pool that has all the services there are."""
    pool = DescriptorPool()
    for file in (DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)
    return pool
