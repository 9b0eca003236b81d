"""The services of a gRPC server, whichever transport brings their calls.

Besides the Open Inference Protocol's own service these are grpc.health.v1 and reflection, as gRPC
tools expect. Errors have the texts of REST, and status codes that correspond to its statuses.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from math import ceil
from typing import Any, NamedTuple
from urllib.parse import quote

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from parity_models import __version__
from parity_models.serving.access import Certificate, Clients
from parity_models.serving.errors import (
    AbandonedError,
    InternalError,
    NotFoundError,
    OverloadedError,
    Refused,
    RefusedError,
    RequestError,
    UnavailableError,
)
from parity_models.serving.grpc import protos as pb
from parity_models.serving.grpc.codec import (
    DETAILS,
    MAX_METADATA_BYTES,
    MODEL_SHA256,
    SERVICE,
    decode,
    parameter_of,
    read_message,
    read_request,
    too_large,
    write_response,
)
from parity_models.serving.http import GRACE
from parity_models.serving.inference import Call, Inference, InferRequest
from parity_models.serving.limits import Limits
from parity_models.serving.models import Result, ServedModel, ServedVersion
from parity_models.serving.protocol import SOFTWARE
from parity_models.serving.request_log import REQUEST_ID, RequestLog

_log = logging.getLogger(__name__)

HEALTH = pb.POOL.FindServiceByName("grpc.health.v1.Health")
REFLECTION = pb.POOL.FindServiceByName("grpc.reflection.v1alpha.ServerReflection")

_HEALTH_INTERVAL = 0.25
"""Seconds between two looks at the readiness that a stream watches."""

MAX_TEXT = 1000
"""Bytes of an error that always fit: it travels in a header, where gRPC writes some bytes as three,
and may have a client's names in it."""

RESERVE = 100
"""Calls beyond their limit that are let in to be refused, or to ask for the server's health, which
a busy server answers too."""

AGE_GRACE = 120.0
"""Seconds for calls to end once a client is asked to reconnect, as its connection is old. So no
answer stays unread for longer than both times."""

METHODS = {
    f"/{service.full_name}/{method.name}": method.name
    for service in (SERVICE, HEALTH, REFLECTION)
    for method in service.methods
}
"""The names of methods, by their paths."""

# Its messages are those of v1alpha.
METHODS["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] = "ServerReflectionInfo"

INFER, CHECK = "ModelInfer", "Check"
WATCH, REFLECT = "Watch", "ServerReflectionInfo"
"""The methods that answer a message with a stream, and each message of a stream with another. The
others answer a message with one."""

_SERVICES = ("", SERVICE.full_name)
"""The services whose health is known; the first is the server itself."""

_REQUESTS = {
    method.name: GetMessageClass(method.input_type)
    for service in (SERVICE, HEALTH)
    for method in service.methods
}
"""The classes of requests, by their methods."""

_QUIET = ("ServerLive", "ServerReady", CHECK, WATCH, REFLECT, "")
"""Methods that are left out of the access log, and need no token: most are polled. "" is none."""

_CHANGES = ("RepositoryModelLoad", "RepositoryModelUnload")
"""Methods for administrators."""

_CODES = {
    400: code_pb2.INVALID_ARGUMENT,
    401: code_pb2.UNAUTHENTICATED,
    403: code_pb2.PERMISSION_DENIED,
    404: code_pb2.NOT_FOUND,
    408: code_pb2.DEADLINE_EXCEEDED,
    413: code_pb2.RESOURCE_EXHAUSTED,
    499: code_pb2.CANCELLED,
    500: code_pb2.INTERNAL,
    501: code_pb2.UNIMPLEMENTED,
    503: code_pb2.UNAVAILABLE,
    504: code_pb2.DEADLINE_EXCEEDED,
}


class Failure(NamedTuple):
    """The end of a call that fails: a code of google.rpc.Code, a text, and trailing metadata."""

    code: int
    text: str
    metadata: tuple[tuple[str, bytes], ...] = ()


class Rpc(Call[bytes]):
    """A call, as its transport brings it, of the method called `name`; "" if there is none.

    `metadata` are the client's, and include HTTP/2's `:path`. The transport holds the bytes of the
    message, puts it into `body`, and releases it at the end. It sends `initial` ahead of the
    answer, and `trailing` with the status OK.
    """

    log: RequestLog
    initial: tuple[tuple[str, str], ...] = ()
    trailing: tuple[tuple[str, str], ...] = ()

    def __init__(self, metadata: Sequence[tuple[str, str]], service: "Service") -> None:
        self._metadata = metadata
        self.headers = headers = dict(metadata)
        self.name = METHODS.get(headers.get(":path", ""), "")
        self.budget = service.budget
        self._max_answer = service.limits.max_body

    def values(self, header: str) -> Sequence[str]:
        return [value for key, value in self._metadata if key == header]

    def read(self, model: ServedModel) -> InferRequest:
        message, raws = self.body
        return read_request(message, raws, model)

    def hold(self, size: int) -> None:
        if size > 2 * self._max_answer:
            most = self._max_answer
            raise too_large(size // 2, "an answer over gRPC has", most, "the answer")
        super().hold(size)

    async def write(self, asked: InferRequest, result: Result) -> bytes:
        self.trailing = result.headers
        return await write_response(asked, result, self.budget.turn)

    def keep(self, answer: bytes) -> None:
        """Hold an answer, in place of all else, until `release`."""
        self.release()
        self.held = len(answer)
        self.budget.held += self.held


class Service(ABC):
    """A server of gRPC, whose transport brings the calls; see GrpcServer.

    Only `clients` may ask for more than the server's health and the protocol's messages. With a
    `certificate`, over TLS; with `reuse_port`, another process may listen on the same port. Make it
    on the event loop that it is to run on; start and stop it once.
    """

    def __init__(
        self,
        inference: Inference,
        limits: Limits,
        *,
        clients: Clients = Clients(),
        certificate: Certificate | None = None,
        reuse_port: bool = False,
    ) -> None:
        self.limits = limits
        self.metrics = inference.models.metrics
        self.budget = inference.budget
        self.max_message = max(1, limits.max_body // 2)
        """Bytes that a message may have."""
        self._inference = inference
        self._models = inference.models
        self._clients = clients
        self._certificate = certificate
        self._reuse_port = reuse_port
        self._rpcs = self._watches = 0
        self.stopping = False

    @abstractmethod
    async def start(self, host: str, port: int) -> str:
        """Listen there (port 0: any that is free); return the URL, as grpc://127.0.0.1:8001, or
        grpcs:// over TLS.

        Raises UserError if that fails.
        """

    @abstractmethod
    async def stop(self, grace: float = GRACE) -> None:
        """Answer the calls in flight, for `grace` seconds, and close."""

    def begin(self, rpc: Rpc) -> None:
        """Admit a call by its head. Raises a RequestError."""
        rpc.log = RequestLog("gRPC", rpc.name, rpc.headers)
        if REQUEST_ID in rpc.headers:
            rpc.initial = ((REQUEST_ID, rpc.log.id),)
        if rpc.name not in _QUIET:
            self._clients.check(rpc.headers.get("authorization"))
        if rpc.name in _CHANGES and self._models.only is None:
            self._clients.check_administrator(rpc.headers.get("authorization"))

    def max_size(self, rpc: Rpc) -> int:
        """Return the bytes that the message of a call may have."""
        return self.max_message if rpc.name == INFER else MAX_METADATA_BYTES

    def check_size(self, rpc: Rpc, size: int) -> None:
        """Raise a RequestError for a message that is too large."""
        if size <= self.max_size(rpc):
            return
        if rpc.name != INFER:
            raise too_large(size, "without a tensor it has", MAX_METADATA_BYTES)
        # Clients know gRPC's own text.
        text = f"Received message larger than max ({size} vs. {self.max_message})"
        raise RefusedError(text, 413, Refused.MAX_BODY)

    async def answer(self, rpc: Rpc) -> bytes:
        """Answer a call that was admitted, whose message is in its body. Raises a RequestError."""
        if rpc.name == INFER:
            answer = await self._infer(rpc)
        else:
            request = read_message(_REQUESTS[rpc.name], rpc.body)
            said: Message = await getattr(self, rpc.name)(request, rpc)
            answer = said.SerializeToString()
        self._ended(rpc, 200, "OK")
        rpc.keep(answer)
        return answer

    def failed(self, rpc: Rpc, error: Exception) -> Failure:
        """Count and log a call that ends with this error. If the time of a retry is known, the
        metadata have a google.rpc.Status with RetryInfo (google/rpc/error_details.proto)."""
        if not isinstance(error, RequestError):
            _log.error("a gRPC request failed", exc_info=error)
            error = InternalError("the server failed to handle the request; its log says why")
        # Drop the large messages in the frames of its traceback.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        rpc.release()
        code = _CODES.get(error.status, code_pb2.INTERNAL)
        if isinstance(error, OverloadedError):
            code = code_pb2.RESOURCE_EXHAUSTED
        self._ended(rpc, error.status, code_pb2.Code.Name(code))
        self.metrics.refuse(error)
        text = str(error).encode(errors="replace")[:MAX_TEXT].decode(errors="ignore")
        if error.retry_after is None:
            return Failure(code, text)
        status = Status(code=code, message=text)
        delay = Duration()
        delay.FromMilliseconds(ceil(error.retry_after * 1e3))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
        return Failure(code, text, ((DETAILS, status.SerializeToString()),))

    def abandoned(self, rpc: Rpc) -> None:
        """Count and log a call whose client has gone."""
        rpc.release()
        self._ended(rpc, AbandonedError.status, "CANCELLED")

    def _ended(self, rpc: Rpc, status: int, code: str) -> None:
        """Count and log a call, before its client hears of it."""
        if rpc.name not in _QUIET:
            rpc.log.ended(code)
        if rpc.name == INFER:
            (rpc.log.metrics or self.metrics).request(status).inc()

    async def _infer(self, rpc: Rpc) -> bytes:
        limits = self.limits
        if self._rpcs >= limits.max_rpcs:
            raise OverloadedError(
                f"the server takes at most {limits.max_rpcs:,} gRPC calls at a time "
                "(max_rpcs); try again later",
                why=Refused.MAX_RPCS,
            )
        self._rpcs += 1
        try:
            if len(rpc.body) > limits.max_json:
                await self.budget.turn()
            message, raws = rpc.body = decode(rpc.body, self._models.largest, limits.max_json)
            rpc.model, rpc.version = message.model_name, message.model_version or None
            del message, raws  # held by the call, until they are read
            return await self._inference.answer(rpc)
        finally:
            self._rpcs -= 1

    # Streams

    async def watch(self, rpc: Rpc) -> AsyncIterator[bytes]:
        """Answer the method Watch of grpc.health.v1: the status now and after each change, until
        the server stops. Raises a RequestError."""
        self._watches += 1
        try:
            if self._watches > self.limits.max_connections:
                raise OverloadedError(
                    f"the server takes at most {self.limits.max_connections:,} streams of health "
                    "at a time (max_connections); try again later",
                    why=Refused.MAX_CONNECTIONS,
                )
            service, last = read_message(pb.HealthCheckRequest, rpc.body).service, None
            while True:
                stopping = self.stopping
                response = pb.HealthCheckResponse(status=self._health)
                if service not in _SERVICES:
                    response.status = response.SERVICE_UNKNOWN
                if response != last:
                    yield response.SerializeToString()
                last = response
                if stopping:
                    return
                await asyncio.sleep(_HEALTH_INTERVAL)
        finally:
            self._watches -= 1

    @property
    def _health(self) -> Any:
        """The status of grpc.health.v1."""
        response = pb.HealthCheckResponse
        ready = not self._models.why_unready and not self.stopping
        return response.SERVING if ready else response.NOT_SERVING

    def reflect(self, data: bytes | memoryview) -> bytes:
        """Answer a message of ServerReflectionInfo. Raises a RequestError."""
        request = read_message(pb.ServerReflectionRequest, data)
        response = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
        kind = request.WhichOneof("message_request")
        try:
            if kind == "list_services":
                for service in (SERVICE, HEALTH, REFLECTION):
                    response.list_services_response.service.add(name=service.full_name)
            elif kind in ("file_by_filename", "file_containing_symbol"):
                by_name = kind == "file_by_filename"
                find = pb.POOL.FindFileByName if by_name else pb.POOL.FindFileContainingSymbol
                file = find(getattr(request, kind)).serialized_pb
                response.file_descriptor_response.file_descriptor_proto.append(file)
            else:
                raise KeyError("no message has extensions")
        except KeyError as error:
            response.error_response.error_code = code_pb2.NOT_FOUND
            response.error_response.error_message = str(error)[:MAX_TEXT]
        answer: bytes = response.SerializeToString()
        return answer

    # Methods, by the protocol's names

    async def Check(self, request: pb.HealthCheckRequest, rpc: Rpc) -> Any:
        if request.service not in _SERVICES:
            raise NotFoundError(f"this server has no service {request.service[:80]!r}")
        return pb.HealthCheckResponse(status=self._health)

    async def ServerLive(self, request: pb.ServerLiveRequest, rpc: Rpc) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, rpc: Rpc) -> Any:
        return pb.ServerReadyResponse(ready=not self._models.why_unready)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, rpc: Rpc) -> Any:
        if self._models.only is not None:
            rpc.trailing = bundle_of(self._models.only)
        return pb.ServerMetadataResponse(
            name=SOFTWARE, version=__version__, extensions=self._models.extensions
        )

    async def ModelReady(self, request: pb.ModelReadyRequest, rpc: Rpc) -> Any:
        try:
            version = self._models.find(request.name, request.version or None)
        except UnavailableError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=not version.why_unready)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, rpc: Rpc) -> Any:
        version = self._models.find(request.name, request.version or None)
        about = version.model.metadata
        rpc.trailing = bundle_of(version)
        response = pb.ModelMetadataResponse(
            name=about.name, versions=about.versions, platform=about.platform
        )
        for each in about.inputs:
            response.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        for each in about.outputs:
            response.outputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        return response

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, rpc: Rpc) -> Any:
        response = pb.RepositoryIndexResponse()
        for each in self._models.index():
            if each.state == "READY" or not request.ready:
                response.models.add(
                    name=each.name, version=each.version, state=each.state, reason=each.reason
                )
        return response

    async def RepositoryModelLoad(self, request: pb.RepositoryModelLoadRequest, rpc: Rpc) -> Any:
        given = {name: parameter_of(request, name) for name in request.parameters}
        await self._models.load(request.model_name, given)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, rpc: Rpc
    ) -> Any:
        await self._models.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()


def bundle_of(version: ServedVersion) -> tuple[tuple[str, str], ...]:
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
