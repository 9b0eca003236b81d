"""The methods of the Open Inference Protocol's gRPC service, over models: messages in and out.

What bounds calls, and makes gRPC's statuses of errors, is `methods`.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from google.protobuf.message import DecodeError, Message
from grpc.aio import ServicerContext

from parity_models import __version__
from parity_models.serving.errors import (
    AbandonedError,
    InvalidRequestError,
    NotFoundError,
    RequestError,
    UnavailableError,
)
from parity_models.serving.grpc.codec import decode_request, encode_response
from parity_models.serving.grpc.expected_size import check_size
from parity_models.serving.grpc.inference_pb2 import (
    DESCRIPTOR,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ModelRepositoryParameter,
    RepositoryIndexRequest,
    RepositoryIndexResponse,
    RepositoryModelLoadRequest,
    RepositoryModelLoadResponse,
    RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse,
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from parity_models.serving.metrics import GRPC, Metrics
from parity_models.serving.models import Models, ServedVersion
from parity_models.serving.protocol import SOFTWARE, InferRequest
from parity_models.serving.request_log import CURRENT
from parity_models.serving.tenancy import with_tenant

SERVICE = DESCRIPTOR.services_by_name["GRPCInferenceService"]

BUNDLE_DIGEST = "bundle-digest"
"""The trailing metadata of ServerMetadata and ModelMetadata that names the bundle."""

MODEL_SHA256 = "model-sha256"
"""Likewise, that is the hash of the deployed model's file."""

QUARANTINED = "quarantined-instances"
"""Likewise, that names the instances that were found to answer wrongly, the latest last."""

EXACT_OUTPUTS = "exact-outputs"
"""Likewise, that names the outputs that no stand-in gives, each percent-encoded."""

Context = ServicerContext[Any, Any]
_Request = TypeVar("_Request", bound=Message)


class Asking(NamedTuple):
    """A request, and who is to answer it."""

    version: ServedVersion
    request: InferRequest


class InferenceService:
    """The methods of GRPCInferenceService, by their names there. They raise RequestErrors.

    What they need of a `context` is the client's time limit and metadata both ways.
    """

    def __init__(self, models: Models, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics
        self.received = metrics.received.labels(GRPC).inc
        self.sent = metrics.sent.labels(GRPC).inc

    async def ServerLive(self, request: ServerLiveRequest, context: Context) -> ServerLiveResponse:
        return ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: ServerReadyRequest, context: Context
    ) -> ServerReadyResponse:
        return ServerReadyResponse(ready=not self._models.why_unready)

    async def ServerMetadata(
        self, request: ServerMetadataRequest, context: Context
    ) -> ServerMetadataResponse:
        if self._models.only is not None:
            _name_bundle(self._models.only, context)
        return ServerMetadataResponse(
            name=SOFTWARE, version=__version__, extensions=self._models.extensions
        )

    async def ModelReady(self, request: ModelReadyRequest, context: Context) -> ModelReadyResponse:
        try:
            version = self._models.find(request.name, request.version or None)
        except UnavailableError:
            return ModelReadyResponse(ready=False)
        return ModelReadyResponse(ready=version.frontend.ready)

    async def ModelMetadata(
        self, request: ModelMetadataRequest, context: Context
    ) -> ModelMetadataResponse:
        version = self._models.find(request.name, request.version or None)
        _name_bundle(version, context)
        about = version.model.metadata
        inputs, outputs = (
            [
                ModelMetadataResponse.TensorMetadata(
                    name=each.name, datatype=each.datatype, shape=each.shape
                )
                for each in tensors
            ]
            for tensors in (about.inputs, about.outputs)
        )
        return ModelMetadataResponse(
            name=about.name,
            versions=self._models.versions(about.name),
            platform=about.platform,
            inputs=inputs,
            outputs=outputs,
        )

    async def ModelInfer(self, request: ModelInferRequest, context: Context) -> ModelInferResponse:
        with self.counting() as counted:
            return await self.answer(self.asked(request, context, counted), context)

    async def RepositoryIndex(
        self, request: RepositoryIndexRequest, context: Context
    ) -> RepositoryIndexResponse:
        return RepositoryIndexResponse(
            models=[
                RepositoryIndexResponse.ModelIndex(
                    name=each.name, version=each.version, state=each.state, reason=each.reason
                )
                for each in self._models.index()
                if each.state == "READY" or not request.ready
            ]
        )

    async def RepositoryModelLoad(
        self, request: RepositoryModelLoadRequest, context: Context
    ) -> RepositoryModelLoadResponse:
        given = {name: _value_of(each) for name, each in request.parameters.items()}
        await self._models.load(request.model_name, given)
        return RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: RepositoryModelUnloadRequest, context: Context
    ) -> RepositoryModelUnloadResponse:
        await self._models.unload(request.model_name)
        return RepositoryModelUnloadResponse()

    # ModelInfer in its parts, for who bounds what it holds between them

    def read(self, data: bytes) -> ModelInferRequest:
        """The message. Raises a RequestError for what is none, or would be far too large."""
        largest = self._models.largest
        if largest is None:
            raise NotFoundError("this server has no model that takes requests; load one")
        check_size(data, largest)
        return read_message(ModelInferRequest, data)

    def asked(self, request: ModelInferRequest, context: Context, counted: "Counted") -> Asking:
        """What the message asks, and whom. It keeps no more of the message than the rows.

        Nothing may be awaited before `answer` is.
        """
        version = self._models.find(request.model_name, request.model_version or None)
        counted.metrics = version.metrics or self._metrics
        asked = decode_request(request, version.model)
        tenants = version.model.tenant_header
        return Asking(version, with_tenant(asked, tenants, partial(_metadata, context)))

    async def answer(self, asking: Asking, context: Context) -> ModelInferResponse:
        version, asked = asking
        timeouts = (asked.timeout, context.time_remaining())
        timeout = min((each for each in timeouts if each is not None), default=None)
        log = CURRENT.get()
        if log is not None:
            log.id_in_body(asked.id)
        answers = await version.frontend.infer(
            asked.rows, timeout, tenant=asked.tenant, exact=asked.exact
        )
        model = version.model
        if log is not None:
            log.answered(model.name, model.version, answers.sources)
        return encode_response(model, asked, answers.outputs, answers.sources)

    def refused(self, error: RequestError) -> None:
        """A call ends with this error: count why, if it was refused."""
        if error.why is not None:
            self._metrics.refusals.labels(error.why).inc()

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


class Counted:
    """Where a request is counted: with its model, once that is known."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics


def _name_bundle(version: ServedVersion, context: Context) -> None:
    """Say which bundle is served, what of it exactly, and who served it wrongly. The protocol's
    messages have no room for that."""
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


def _value_of(parameter: ModelRepositoryParameter) -> object:
    kind = parameter.WhichOneof("parameter_choice")
    return None if kind is None else getattr(parameter, kind)


def _metadata(context: Context, key: str) -> Sequence[str]:
    """All values of the metadata that the client sent under `key`, which is in lower case."""
    return [str(value) for each, value in context.invocation_metadata() or () if each == key]


def read_message(request: type[_Request], data: bytes) -> _Request:
    """Raises InvalidRequestError for what is no such message."""
    try:
        return request.FromString(data)
    except DecodeError as error:
        raise InvalidRequestError(f"the request is no {request.DESCRIPTOR.full_name}") from error
