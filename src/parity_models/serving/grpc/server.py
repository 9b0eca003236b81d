"""The Open Inference Protocol over gRPC, on the event loop of the frontend it serves.

Beside the protocol's own service it has grpc.health.v1 and reflection, as gRPC tools expect.
Errors have the texts of REST, and the status codes that stand for its statuses.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from math import ceil
from typing import Any, NoReturn, TypeVar

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
from parity_models.serving.errors import InvalidRequestError, RequestError, TooLargeError
from parity_models.serving.frontend import Frontend
from parity_models.serving.grpc.calls import RESERVE, Calls
from parity_models.serving.grpc.codec import decode_request, encode_response
from parity_models.serving.grpc.expected_size import MAX_BESIDE, check_size
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
from parity_models.serving.grpc.refusals import code_of, metadata_of, text_of
from parity_models.serving.grpc.unread import UnreadAnswers
from parity_models.serving.http.server import GRACE
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.served_model import PLATFORM, VERSION, InferRequest, ServedModel
from parity_models.serving.tenancy import with_tenant

_log = logging.getLogger(__name__)

SERVICE = DESCRIPTOR.services_by_name["GRPCInferenceService"]
BUNDLE_DIGEST = "bundle-digest"
"""The trailing metadata of ServerMetadata and ModelMetadata that names the bundle."""

MODEL_SHA256 = "model-sha256"
"""Likewise, that is the hash of the deployed model's file."""

QUARANTINED = "quarantined-instances"
"""Likewise, that names the instances that were found to answer wrongly, the latest last."""

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_HEALTH_INTERVAL = 0.2
"""Seconds between two looks at the readiness that somebody watches."""

_CLIENT_CLOSED = 499
"""The HTTP status that gRPC's CANCELLED stands for."""

_MAX_MESSAGE = 2**31 - 1
"""Bytes that gRPC can be told a message may have."""

_MAX_MILLISECONDS = 2**31 - 1
"""The longest time that gRPC can be told."""

_Context = ServicerContext[Any, Any]
_Request = TypeVar("_Request", bound=Message)
_Method = Callable[[AsyncIterator[bytes], _Context], Awaitable[Message]]


class GrpcServer:
    """Serves a frontend's model, within `limits`; `budget` counts the bytes of all requests.

    Made on the event loop that it is to run on, and started and stopped once.
    """

    def __init__(
        self,
        frontend: Frontend,
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
        handler = _handler(service, Calls(limits, budget), self._unread)
        self._server.add_generic_rpc_handlers((handler,))
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
        self._unread.port = port
        await self._server.start()
        return f"grpc://{host}:{port}"

    async def stop(self) -> None:
        """Answer what is under way, for some seconds, and close."""
        self._stopping.set()
        await self._server.stop(GRACE)


class InferenceService:
    """The methods of GRPCInferenceService, by their names there. They raise RequestErrors.

    What they need of a `context` is the client's time limit and metadata both ways.
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
        self._name_bundle(context)
        return ServerMetadataResponse(name="parity-models", version=__version__)

    async def ModelReady(self, request: ModelReadyRequest, context: _Context) -> ModelReadyResponse:
        self._model.check_model(request.name, request.version)
        return ModelReadyResponse(ready=self._frontend.ready)

    async def ModelMetadata(
        self, request: ModelMetadataRequest, context: _Context
    ) -> ModelMetadataResponse:
        model = self._model
        model.check_model(request.name, request.version)
        self._name_bundle(context)
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
        with self.counting():
            return await self.answer(self.asked(request, context), context)

    # ModelInfer in its parts, for who bounds what it holds between them

    def read(self, data: bytes) -> ModelInferRequest:
        """The message. Raises a RequestError for what is none, or would be far too large."""
        check_size(data, self._model)
        return read_message(ModelInferRequest, data)

    def asked(self, request: ModelInferRequest, context: _Context) -> InferRequest:
        """What the message asks. It keeps no more of the message than the rows."""
        model = self._model
        model.check_model(request.model_name, request.model_version)
        asked = decode_request(request, model)
        return with_tenant(asked, model.tenant_header, partial(_metadata, context))

    async def answer(self, asked: InferRequest, context: _Context) -> ModelInferResponse:
        timeouts = (asked.timeout, context.time_remaining())
        timeout = min((each for each in timeouts if each is not None), default=None)
        answers = await self._frontend.infer(
            asked.rows, timeout, tenant=asked.tenant, exact=asked.exact
        )
        return encode_response(self._model, asked, answers.outputs, answers.sources)

    def _name_bundle(self, context: _Context) -> None:
        """Say which bundle is served, and who served it wrongly. The protocol's messages have no
        room for that."""
        about = []
        if self._model.digest is not None:
            about.append((BUNDLE_DIGEST, self._model.digest))
        if self._model.sha256 is not None:
            about.append((MODEL_SHA256, self._model.sha256))
        if self._frontend.quarantined:
            about.append((QUARANTINED, ",".join(self._frontend.quarantined)))
        context.set_trailing_metadata(tuple(about))

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count a request, by how it ends inside."""
        status = 500
        try:
            yield
            status = 200
        except RequestError as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            status = _CLIENT_CLOSED
            raise
        finally:
            self._metrics.requests.labels(status).inc()


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


def _handler(
    service: InferenceService, calls: Calls, unread: UnreadAnswers
) -> grpc.GenericRpcHandler:
    """All methods take a stream of one message, so that they can refuse it unread. On the wire
    that is no different."""

    def sent(answer: _Method) -> _Method:
        async def answered(messages: AsyncIterator[bytes], context: _Context) -> Message:
            message = await answer(messages, context)
            unread.sent(context, message.ByteSize())
            return message

        return answered

    async def infer(messages: AsyncIterator[bytes], context: _Context) -> Message:
        with service.counting(), calls.one():
            data = await calls.read(messages)
            with calls.holding(len(data)) as held:
                asked = service.asked(service.read(data), context)
                del data
                held.shrink_to(asked.rows.nbytes)
                return await service.answer(asked, context)

    methods: dict[str, _Method] = {
        method.name: partial(
            _read_and_answered,
            calls,
            GetMessageClass(method.input_type),
            getattr(service, method.name),
        )
        for method in SERVICE.methods
    }
    methods["ModelInfer"] = infer
    return grpc.method_handlers_generic_handler(
        SERVICE.full_name,
        {
            method.name: grpc.stream_unary_rpc_method_handler(
                guarded(sent(methods[method.name])),
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
            for method in SERVICE.methods
        },
    )


async def _read_and_answered(
    calls: Calls,
    kind: type[Message],
    answer: Callable[[Any, _Context], Awaitable[Message]],
    messages: AsyncIterator[bytes],
    context: _Context,
) -> Message:
    data = await calls.read(messages)
    if len(data) > MAX_BESIDE:
        raise TooLargeError(
            f"the message has {len(data)} bytes; without a tensor it has at most {MAX_BESIDE}"
        )
    return await answer(read_message(kind, data), context)


def guarded(answer: _Method) -> _Method:
    """The method, with its errors as gRPC's. (gRPC itself would log every request that cannot be
    read, and send the text of any exception to the client.)"""

    async def answered(messages: AsyncIterator[bytes], context: _Context) -> Message:
        try:
            return await answer(messages, context)
        except RequestError as error:
            await _abort(context, code_of(error), text_of(error), metadata_of(error))
        except Exception as error:
            _log.error("a gRPC request failed", exc_info=error)
            text = "the server failed to handle the request; its log says why"
            await _abort(context, StatusCode.INTERNAL, text)

    return answered


async def _abort(
    context: _Context, code: StatusCode, text: str, metadata: tuple[tuple[str, bytes], ...] = ()
) -> NoReturn:
    """End a call with this status; it is no error if its client has just gone."""
    try:
        await context.abort(code, text, metadata)
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # gRPC would log it
        raise asyncio.CancelledError from error


def read_message(request: type[_Request], data: bytes) -> _Request:
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
