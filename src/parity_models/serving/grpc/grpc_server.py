"""The Open Inference Protocol over gRPC, on the event loop of the models it serves.

Besides the protocol's own service it has grpc.health.v1 and reflection, as gRPC tools expect.
Errors have the texts of REST, and status codes that correspond to its statuses. gRPC itself bounds
the sizes of messages, the connections, and their times.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from functools import partial
from math import ceil
from typing import Any, NoReturn
from urllib.parse import quote
from weakref import WeakValueDictionary

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc.aio import ServicerContext
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from parity_models import __version__
from parity_models.errors import UserError
from parity_models.serving.access import Clients
from parity_models.serving.errors import (
    AbandonedError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    Refused,
    RefusedError,
    RequestError,
    UnavailableError,
)
from parity_models.serving.grpc import inference_pb2 as pb
from parity_models.serving.grpc.codec import (
    MAX_METADATA_BYTES,
    decode,
    parameter_of,
    read_message,
    read_request,
    too_large,
    write_response,
)
from parity_models.serving.grpc.messages import DETAILS, MODEL_SHA256, SERVICE
from parity_models.serving.http import GRACE
from parity_models.serving.inference import Call, Inference, InferRequest
from parity_models.serving.limits import Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import Result, ServedModel, ServedVersion
from parity_models.serving.protocol import SOFTWARE
from parity_models.serving.request_log import REQUEST_ID, RequestLog

_log = logging.getLogger(__name__)

Context = ServicerContext[Any, Any]

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_HEALTH_INTERVAL = 0.2
"""Seconds between two looks at the readiness that streams watch."""

MAX_TEXT = 1000
"""Bytes of an error that always fit: it travels in a header, where gRPC writes some bytes as three,
and may have a client's names in it."""

BACKLOG = 10_000
"""Calls that have arrived and wait for this process; beyond them, gRPC cancels new ones at random.
At its default of 1,000, a client that resets streams at once gets others' calls cancelled."""

RESERVE = 100
"""Calls beyond their limit that are let in to be refused, or to ask for the server's health, which
a busy server answers too."""

_MAX_INT = 2**31 - 1
"""The largest limit of a message, in bytes, and the longest time, in ms, that gRPC takes."""

_MAX_AGE, _AGE_GRACE = 600.0, 120.0
"""Seconds after which clients are asked to reconnect, and for calls to end after that. No answer
stays unread for longer."""

_SERVICES = ("", SERVICE.full_name)
"""The services whose health is known; the first is the server itself."""

_QUIET = ("ServerLive", "ServerReady")
"""Methods that are polled: they are left out of the access log, and need no token."""

_CHANGES = ("RepositoryModelLoad", "RepositoryModelUnload")
"""Methods for administrators."""

_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    408: StatusCode.DEADLINE_EXCEEDED,
    413: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    500: StatusCode.INTERNAL,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}

_UNARY = grpc.unary_unary_rpc_method_handler

_Handler = Any
"""grpc.RpcMethodHandler, which is generic only in its stub."""


class ModelInfer(Call[bytes]):
    """A call of ModelInfer, with its message; an answer may have `max_answer` bytes."""

    def __init__(self, context: Context, log: RequestLog, inference: Inference, max_answer: int):
        self.log = log
        self.budget = inference.budget
        self._context = context
        self._max_answer = max_answer

    def values(self, header: str) -> Sequence[str]:
        metadata = self._context.invocation_metadata() or ()
        return [str(value) for key, value in metadata if key == header]

    def read(self, model: ServedModel) -> InferRequest:
        message, raws = self.body
        return read_request(message, raws, model)

    def hold(self, size: int) -> None:
        if size > 2 * self._max_answer:
            most = self._max_answer
            raise too_large(size // 2, "an answer over gRPC has", most, "the answer")
        super().hold(size)

    async def write(self, asked: InferRequest, result: Result) -> bytes:
        self._context.set_trailing_metadata(result.headers)
        return await write_response(asked, result, self.budget.turn)


class GrpcServer:
    """Serves the models of `inference`, within `limits`.

    Only `clients` may ask for more than the server's health and the protocol's messages. With
    `reuse_port`, another process may listen on the same port. Make it on the event loop that it is
    to run on; start and stop it once.
    """

    def __init__(
        self,
        inference: Inference,
        limits: Limits,
        *,
        clients: Clients = Clients(),
        reuse_port: bool = False,
    ) -> None:
        self._inference = inference
        self._models = inference.models
        self._clients = clients
        self._metrics = inference.models.metrics
        self._budget = inference.budget
        self._limits = limits
        self._rpcs = 0
        self._may_arrive = max(1, limits.max_in_flight // limits.max_body)
        self._arriving = asyncio.Semaphore(self._may_arrive)
        self._arriving_from: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._server = grpc.aio.server(
            options=[*_options(limits), ("grpc.so_reuseport", int(reuse_port))],
            maximum_concurrent_rpcs=limits.max_rpcs + limits.max_connections + RESERVE,
        )
        self._watches = 0
        self._stopping = False
        self._changes: dict[int, asyncio.Task[None]] = {}
        """By health, the task that ends when the health changes; all streams wait for it."""
        own: dict[str, _Handler] = {}
        for method in SERVICE.methods:
            # A stream of one message, the same to clients, is read when the server chooses to.
            is_inference = method.name == "ModelInfer"
            make = grpc.stream_unary_rpc_method_handler if is_inference else _UNARY
            own[method.name] = make(partial(self._answer, method.name))
        watch: _Handler = grpc.unary_stream_rpc_method_handler(self._watch)
        health = {"Check": _UNARY(self._check), "Watch": watch}
        for name, handlers in ((SERVICE.full_name, own), (HEALTH, health)):
            handler = grpc.method_handlers_generic_handler(name, handlers)
            self._server.add_generic_rpc_handlers((handler,))
        names = (SERVICE.full_name, HEALTH, reflection.SERVICE_NAME)
        pool = DescriptorPool()  # with all the services there are
        for file in (pb.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
            pool.AddSerializedFile(file.serialized_pb)
        reflection.enable_server_reflection(names, self._server, pool)

    async def start(self, host: str, port: int, tls: grpc.ServerCredentials | None = None) -> str:
        """Listen there (port 0: any that is free); return the URL, as grpc://127.0.0.1:8001, or
        grpcs:// with `tls`.

        Raises UserError if that fails.
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

    async def stop(self, grace: float = GRACE) -> None:
        """Answer the calls in flight, for `grace` seconds, and close."""
        self._stopping = True
        await self._server.stop(grace)
        await asyncio.gather(*self._changes.values())

    async def _answer(self, name: str, data: Any, context: Context) -> bytes:
        """Answer a call of this method, and log it; ModelInfer is counted.

        gRPC itself would log every request that cannot be read, and send the text of any exception
        to the client.
        """
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        log = RequestLog("gRPC", name, metadata)
        try:
            if REQUEST_ID in metadata:
                await context.send_initial_metadata(((REQUEST_ID, log.id),))
            if name not in _QUIET:
                self._clients.check(metadata.get("authorization"))
            if name == "ModelInfer":
                call = ModelInfer(context, log, self._inference, self._limits.max_body)
                call.headers = metadata
                answer = await self._infer(call, context)
            else:
                if len(data) > MAX_METADATA_BYTES:
                    raise too_large(len(data), "without a tensor it has", MAX_METADATA_BYTES)
                if name in _CHANGES and self._models.only is None:
                    self._clients.check_administrator(metadata.get("authorization"))
                kind = GetMessageClass(SERVICE.methods_by_name[name].input_type)
                said: Message = await getattr(self, name)(read_message(kind, data), context)
                answer = said.SerializeToString()
            self._ended(name, log, 200, StatusCode.OK)
        except asyncio.CancelledError:
            self._ended(name, log, AbandonedError.status, StatusCode.CANCELLED)
            raise
        except Exception as error:
            if not isinstance(error, RequestError):
                _log.error("a gRPC request failed", exc_info=error)
                error = InternalError("the server failed to handle the request; its log says why")
            self._ended(name, log, error.status, code_of(error))
            await refuse(context, error, self._metrics)
        size = len(answer)
        release = partial(self._hold, -size)
        context.add_done_callback(release)  # type: ignore[arg-type]  # stubs want its own class
        self._hold(size)
        return answer

    def _ended(self, name: str, log: RequestLog, status: int, code: StatusCode) -> None:
        """Count and log a call, before its client hears of it."""
        if name not in _QUIET:
            log.ended(code.name)
        if name == "ModelInfer":
            (log.metrics or self._metrics).request(status).inc()

    def _hold(self, size: int, _: object = None) -> None:
        self._budget.held += size

    async def _infer(self, call: ModelInfer, context: Context) -> bytes:
        """Answer ModelInfer. Its message's bytes, and its answer's, count against the budget."""
        limits = self._limits
        if self._rpcs >= limits.max_rpcs:
            raise OverloadedError(
                f"the server takes at most {limits.max_rpcs:,} gRPC calls at a time "
                "(max_rpcs); try again later",
                why=Refused.MAX_RPCS,
            )
        self._rpcs += 1
        try:
            data = await self._receive(context)
            call.hold(len(data))
            if len(data) > limits.max_json:
                await self._budget.turn()
            message, raws = call.body = decode(data, self._models.largest, limits.max_json)
            call.model, call.version = message.model_name, message.model_version or None
            call.timeout = context.time_remaining()
            del data, message, raws  # held by the call, until they are read
            return await self._inference.answer(call)
        finally:
            call.release()
            self._rpcs -= 1

    async def _receive(self, context: Context) -> bytes:
        """Return the message of a call. Its size is unknown while it arrives, so few arrive at a
        time, and half as many from one address, which bounds their bytes."""
        address = context.peer().rpartition(":")[0]
        own = self._arriving_from.get(address)
        if own is None:
            few = max(1, self._may_arrive // 2)
            own = self._arriving_from[address] = asyncio.Semaphore(few)
        seconds = self._limits.body_timeout
        try:
            async with asyncio.timeout(seconds), own, self._arriving:
                data = await context.read()
        except TimeoutError as error:
            text = f"the message did not arrive within the body_timeout of {seconds:g} s"
            raise RefusedError(text, 408, Refused.BODY_TIMEOUT) from error
        if not isinstance(data, bytes):
            raise InvalidRequestError("the call has no message")
        return data

    async def _check(self, data: bytes, context: Context) -> bytes:
        """Answer the method Check of grpc.health.v1."""
        try:
            service = read_message(health_pb2.HealthCheckRequest, data).service
            if service not in _SERVICES:
                raise NotFoundError(f"this server has no service {service[:80]!r}")
        except RequestError as error:
            await refuse(context, error, self._metrics)
        return health_pb2.HealthCheckResponse(status=self._health).SerializeToString()

    async def _watch(self, data: bytes, context: Context) -> AsyncIterator[bytes]:
        """Answer the method Watch of grpc.health.v1: the status now and after each change, until
        the server stops."""
        self._watches += 1
        try:
            if self._watches > self._limits.max_connections:
                raise OverloadedError(
                    f"the server takes at most {self._limits.max_connections:,} streams of health "
                    "at a time (max_connections); try again later",
                    why=Refused.MAX_CONNECTIONS,
                )
            service, last = read_message(health_pb2.HealthCheckRequest, data).service, None
            while True:
                stopping, health = self._stopping, self._health
                response = health_pb2.HealthCheckResponse(status=health)
                if service not in _SERVICES:
                    response.status = response.SERVICE_UNKNOWN
                if response != last:
                    yield response.SerializeToString()
                last = response
                if stopping:
                    return
                change = self._changes.get(health)
                if change is None or change.done():
                    change = self._changes[health] = asyncio.create_task(self._changed(health))
                await asyncio.shield(change)
        except RequestError as error:
            await refuse(context, error, self._metrics)
        finally:
            self._watches -= 1

    async def _changed(self, health: int) -> None:
        """Wait until the health has changed, or the server stops."""
        while self._health == health and not self._stopping:
            await asyncio.sleep(_HEALTH_INTERVAL)

    @property
    def _health(self) -> int:
        """The status of grpc.health.v1."""
        response = health_pb2.HealthCheckResponse
        ready = not self._models.why_unready and not self._stopping
        return response.SERVING if ready else response.NOT_SERVING

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> Message:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> Message:
        return pb.ServerReadyResponse(ready=not self._models.why_unready)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> Message:
        if self._models.only is not None:
            context.set_trailing_metadata(_bundle_of(self._models.only))
        return pb.ServerMetadataResponse(
            name=SOFTWARE, version=__version__, extensions=self._models.extensions
        )

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> Message:
        try:
            version = self._models.find(request.name, request.version or None)
        except UnavailableError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=not version.why_unready)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> Message:
        version = self._models.find(request.name, request.version or None)
        about = version.model.metadata
        context.set_trailing_metadata(_bundle_of(version))
        response = pb.ModelMetadataResponse(
            name=about.name, versions=about.versions, platform=about.platform
        )
        for each in about.inputs:
            response.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        for each in about.outputs:
            response.outputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        return response

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> Message:
        response = pb.RepositoryIndexResponse()
        for each in self._models.index():
            if each.state == "READY" or not request.ready:
                response.models.add(
                    name=each.name, version=each.version, state=each.state, reason=each.reason
                )
        return response

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> Message:
        given = {name: parameter_of(request, name) for name in request.parameters}
        await self._models.load(request.model_name, given)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> Message:
        await self._models.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()


def _bundle_of(version: ServedVersion) -> tuple[tuple[str, str], ...]:
    """Return a version's trailing metadata, for which the protocol's messages have no field: its
    bundle, its model's file, its outputs that no stand-in gives, percent-encoded, and its instances
    that answered wrongly."""
    about = version.metadata()
    said = {
        "bundle-digest": about.bundle_digest,
        MODEL_SHA256: about.model_sha256,
        "exact-outputs": ",".join(map(quote, about.exact_outputs)),
        "quarantined-instances": ",".join(about.quarantined_instances),
    }
    return tuple((key, value) for key, value in said.items() if value)


def _options(limits: Limits) -> list[tuple[str, int]]:
    """Return the limits that gRPC itself enforces; headers and pings keep its defaults."""
    times = {
        "server_handshake_timeout": limits.head_timeout,
        "max_connection_idle": limits.idle_timeout,
        "max_connection_age": _MAX_AGE,
        "max_connection_age_grace": _AGE_GRACE,
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


# Errors


def code_of(error: RequestError) -> StatusCode:
    """Return the error's gRPC status: RESOURCE_EXHAUSTED for overload, else the one that
    corresponds to its HTTP status."""
    if isinstance(error, OverloadedError):
        return StatusCode.RESOURCE_EXHAUSTED
    return _CODES.get(error.status, StatusCode.INTERNAL)


async def refuse(context: Context, error: RequestError, metrics: Metrics) -> NoReturn:
    """End a call with this error, even if its client has just gone, and count it. If the time of a
    retry is known, a google.rpc.Status has RetryInfo (google/rpc/error_details.proto of
    googleapis)."""
    # gRPC keeps the error in a cycle, and with it the large messages in its traceback's frames.
    error.__traceback__ = error.__cause__ = error.__context__ = None
    metrics.refuse(error)
    code = code_of(error)
    text = str(error).encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")
    metadata: tuple[tuple[str, bytes], ...] = ()
    if error.retry_after is not None:
        status = Status(code=code.value[0], message=text)
        delay = Duration()
        delay.FromMilliseconds(ceil(error.retry_after * 1e3))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
        metadata = ((DETAILS, status.SerializeToString()),)
    try:
        await context.abort(code, text, metadata)
    except grpc.aio.AbortError:
        raise
    except Exception as gone:  # gRPC would log it
        raise asyncio.CancelledError from gone
