"""The Open Inference Protocol's gRPC service over models, and grpc.health.v1."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from grpc_health.v1 import health_pb2

from parity_models import __version__
from parity_models.serving.errors import (
    AbandonedError,
    InvalidRequestError,
    NotFoundError,
    RequestError,
    TooLargeError,
    UnavailableError,
)
from parity_models.serving.grpc import inference_pb2 as pb
from parity_models.serving.grpc.calls import Calls, Context, abort, code_of, refuse
from parity_models.serving.grpc.codec import read_request, write_response
from parity_models.serving.metrics import GRPC, Metrics
from parity_models.serving.models import Models, ServedVersion
from parity_models.serving.protocol import SOFTWARE
from parity_models.serving.request_log import (
    CURRENT,
    REQUEST_ID,
    TRACEPARENT,
    TRACESTATE,
    RequestLog,
)
from parity_models.serving.tenancy import with_tenant

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing

_log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

BUNDLE_DIGEST = "bundle-digest"
"""The trailing metadata of ServerMetadata and ModelMetadata that names the bundle."""

MODEL_SHA256 = "model-sha256"
"""Likewise, the hash of the deployed model's file."""

QUARANTINED = "quarantined-instances"
"""Likewise, the instances that were found to answer wrongly, the latest last."""

EXACT_OUTPUTS = "exact-outputs"
"""Likewise, the outputs that no stand-in gives, each percent-encoded."""

MAX_BESIDE = 64 * 2**10
"""Bytes that a message may have besides the values of its tensors: names, shapes, parameters."""

_VALUE = 10
"""The most bytes that a value takes in a message."""

_QUIET = ("ServerLive", "ServerReady")
"""Methods that are called again and again, and are in no access log."""

_HEALTH_INTERVAL = 0.2
"""Seconds between two looks at the readiness that somebody watches."""

_Request = TypeVar("_Request", bound=Message)
_Call = Callable[[AsyncIterator[bytes], Context], Awaitable[Message]]


class InferenceService:
    """The methods of GRPCInferenceService, by their names there. They raise RequestErrors.

    They use of a `context` the client's time limit and metadata both ways.
    """

    def __init__(self, models: Models, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=not self._models.why_unready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        if self._models.only is not None:
            _name_bundle(self._models.only, context)
        return pb.ServerMetadataResponse(
            name=SOFTWARE, version=__version__, extensions=self._models.extensions
        )

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        try:
            version = self._models.find(request.name, request.version or None)
        except UnavailableError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=version.frontend.ready)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        version = self._models.find(request.name, request.version or None)
        _name_bundle(version, context)
        about = version.model.metadata
        response = pb.ModelMetadataResponse(
            name=about.name, versions=self._models.versions(about.name), platform=about.platform
        )
        for tensors, described in (
            (response.inputs, about.inputs),
            (response.outputs, about.outputs),
        ):
            for each in described:
                tensors.add(name=each.name, datatype=each.datatype, shape=each.shape)
        return response

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        response = pb.RepositoryIndexResponse()
        for each in self._models.index():
            if each.state == "READY" or not request.ready:
                response.models.add(
                    name=each.name, version=each.version, state=each.state, reason=each.reason
                )
        return response

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        given: dict[str, object] = {}
        for name, parameter in request.parameters.items():
            kind = parameter.WhichOneof("parameter_choice")
            given[name] = None if kind is None else getattr(parameter, kind)
        await self._models.load(request.model_name, given)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        await self._models.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def infer(
        self, data: bytes, context: Context, calls: Calls, counted: "Counted"
    ) -> pb.ModelInferResponse:
        """Answer ModelInfer, given its message. The bytes of the message count against the budget
        until its rows are read, and those until it is answered."""
        with calls.holding(len(data)) as held:
            message = self._read(data)
            # Nothing may be awaited from here on until the frontend is asked.
            version = self._models.find(message.model_name, message.model_version or None)
            model = version.model
            counted.metrics = version.metrics or self._metrics
            asked = read_request(message, model)
            asked = with_tenant(asked, model.tenant_header, partial(_metadata, context))
            del data, message
            held.shrink_to(asked.rows.nbytes)
            limits = (asked.timeout, context.time_remaining())
            timeout = min((each for each in limits if each is not None), default=None)
            log = CURRENT.get()
            if log is not None and asked.id is not None:
                log.id_in_body(asked.id)
            result = await version.frontend.infer(
                asked.rows, timeout, tenant=asked.tenant, exact=asked.exact
            )
            if log is not None:
                log.model, log.version, log.sources = model.name, model.version, result.sources
            return write_response(model, asked, result.outputs, result.sources)

    @contextmanager
    def counting(self) -> Iterator["Counted"]:
        """Count a request, by how it ends inside."""
        counted = Counted(self._metrics)
        status = 500
        try:
            yield counted
            status = 200
        except RequestError as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            status = AbandonedError.status
            raise
        finally:
            counted.metrics.requests.labels(status).inc()

    def _read(self, data: bytes) -> pb.ModelInferRequest:
        """The message. Raises a RequestError for what is none, or is larger than any can be."""
        largest = self._models.largest
        if largest is None:
            raise NotFoundError("this server has no model that takes requests; load one")
        most = MAX_BESIDE + _VALUE * largest.max_values
        if len(data) > most:
            raise TooLargeError(
                f"the message has {len(data)} bytes; the largest request that this server takes "
                f"has at most {most}; send several requests"
            )
        return read_message(pb.ModelInferRequest, data)


class Counted:
    """Where a request is counted: with its model, once that is known."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics


class Health:
    """grpc.health.v1: whether the server is ready, asked once or watched until it stops."""

    def __init__(self, models: Models, calls: Calls, stopping: asyncio.Event) -> None:
        self._models = models
        self._calls = calls
        self._stopping = stopping

    async def check(self, messages: AsyncIterator[bytes], context: Context) -> Message:
        unknown = await self._unknown(messages)
        if unknown is not None:
            raise NotFoundError(f"this server has no service {unknown[:80]!r}")
        return self._status()

    async def watch(
        self, messages: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[Message]:
        with self._calls.watches:
            if await self._unknown(messages) is not None:
                response = health_pb2.HealthCheckResponse
                yield response(status=response.SERVICE_UNKNOWN)
                return
            last = None
            while True:
                stopping, status = self._stopping.is_set(), self._status()
                if status != last:
                    yield status
                    last = status
                if stopping:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(_HEALTH_INTERVAL):
                        await self._stopping.wait()

    async def _unknown(self, messages: AsyncIterator[bytes]) -> str | None:
        """The service that is asked for, if there is none of that name."""
        message = await self._calls.read(messages)
        service = read_message(health_pb2.HealthCheckRequest, message).service
        return None if service in ("", SERVICE.full_name) else service

    def _status(self) -> Message:
        response = health_pb2.HealthCheckResponse
        ready = not self._models.why_unready and not self._stopping.is_set()
        return response(status=response.SERVING if ready else response.NOT_SERVING)


def handlers(
    service: InferenceService,
    health: Health,
    calls: Calls,
    metrics: Metrics,
    tracing: "Tracing | None" = None,
) -> Sequence[grpc.GenericRpcHandler]:
    """The methods of both services as gRPC calls them.

    All take a stream of one message, so that they can refuse it unread. On the wire that is no
    different.
    """
    received, sent = metrics.received.labels(GRPC).inc, metrics.sent.labels(GRPC).inc

    async def infer(messages: AsyncIterator[bytes], context: Context) -> Message:
        with service.counting() as counted, calls.predictions:
            data = await calls.read(messages)
            received(len(data))
            return await service.infer(data, context, calls, counted)

    async def ask(name: str, messages: AsyncIterator[bytes], context: Context) -> Message:
        data = await calls.read(messages)
        received(len(data))
        if len(data) > MAX_BESIDE:
            raise TooLargeError(
                f"the message has {len(data)} bytes; without a tensor it has at most {MAX_BESIDE}"
            )
        kind = GetMessageClass(SERVICE.methods_by_name[name].input_type)
        answer: Message = await getattr(service, name)(read_message(kind, data), context)
        return answer

    async def logged(
        name: str, call: _Call, messages: AsyncIterator[bytes], context: Context
    ) -> Message:
        """Answer, with the request's id, its line in the access log and, for inference, a span."""
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        given = metadata.get(REQUEST_ID)
        log = RequestLog("gRPC", name, given, metadata.get(TRACEPARENT), metadata.get(TRACESTATE))
        CURRENT.set(log)
        traced = tracing if call is infer else None
        ended = StatusCode.INTERNAL
        try:
            if given is not None:
                await context.send_initial_metadata(((REQUEST_ID, log.id),))
            with nullcontext() if traced is None else traced.request(log, metadata):
                answer = await call(messages, context)
            ended = StatusCode.OK
        except RequestError as error:
            ended = code_of(error)
            raise
        except asyncio.CancelledError:
            ended = StatusCode.CANCELLED
            raise
        finally:
            if name not in _QUIET:
                log.ended(ended.name)
        sent(answer.ByteSize())
        calls.hold_answer(context, answer.ByteSize())
        return answer

    async def watch(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[Message]:
        try:
            async for status in health.watch(messages, context):
                yield status
        except RequestError as error:
            await refuse(context, error, metrics)

    own: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in SERVICE.methods:
        call: _Call = infer if method.name == "ModelInfer" else partial(ask, method.name)
        own[method.name] = grpc.stream_unary_rpc_method_handler(
            guarded(partial(logged, method.name, call), metrics),
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    write = health_pb2.HealthCheckResponse.SerializeToString
    check = guarded(health.check, metrics)
    others: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Check": grpc.stream_unary_rpc_method_handler(check, response_serializer=write),
        "Watch": grpc.stream_stream_rpc_method_handler(watch, response_serializer=write),
    }
    return [
        grpc.method_handlers_generic_handler(SERVICE.full_name, own),
        grpc.method_handlers_generic_handler(HEALTH, others),
    ]


def guarded(call: _Call, metrics: Metrics) -> _Call:
    """The call, with its errors as gRPC's.

    gRPC itself would log every request that cannot be read, and send the text of any exception to
    the client.
    """

    async def answered(messages: AsyncIterator[bytes], context: Context) -> Message:
        try:
            return await call(messages, context)
        except RequestError as error:
            await refuse(context, error, metrics)
        except Exception as error:
            _log.error("a gRPC request failed", exc_info=error)
            text = "the server failed to handle the request; its log says why"
            await abort(context, StatusCode.INTERNAL, text)

    return answered


def read_message(request: type[_Request], data: bytes) -> _Request:
    """Raises InvalidRequestError for what is no such message."""
    try:
        return request.FromString(data)
    except DecodeError as error:
        raise InvalidRequestError(f"the request is no {request.DESCRIPTOR.full_name}") from error


def _name_bundle(version: ServedVersion, context: Context) -> None:
    """Name the bundle that is served, its model and the instances that answered wrongly, for which
    the protocol's messages have no room."""
    about = []
    model = version.model
    if model.digest is not None:
        about.append((BUNDLE_DIGEST, model.digest))
    if model.sha256 is not None:
        about.append((MODEL_SHA256, model.sha256))
    if model.exact_outputs:
        about.append((EXACT_OUTPUTS, ",".join(map(quote, model.exact_outputs))))
    if version.frontend.quarantined:
        about.append((QUARANTINED, ",".join(version.frontend.quarantined)))
    context.set_trailing_metadata(tuple(about))


def _metadata(context: Context, key: str) -> Sequence[str]:
    """All values of the metadata that the client sent under `key`, which is in lower case."""
    return [str(value) for each, value in context.invocation_metadata() or () if each == key]
