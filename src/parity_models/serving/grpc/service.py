"""The methods of the Open Inference Protocol's gRPC service, over a frontend: messages in and out.

What bounds calls, and makes gRPC's statuses of errors, is `methods`.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from grpc.aio import ServicerContext

from parity_models import __version__
from parity_models.serving.asked import Answerer
from parity_models.serving.errors import AbandonedError, InvalidRequestError, RequestError
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
    ServerLiveRequest,
    ServerLiveResponse,
    ServerMetadataRequest,
    ServerMetadataResponse,
    ServerReadyRequest,
    ServerReadyResponse,
)
from parity_models.serving.metrics import Metrics
from parity_models.serving.served_model import InferRequest, ServedModel
from parity_models.serving.tenancy import with_tenant

SERVICE = DESCRIPTOR.services_by_name["GRPCInferenceService"]

BUNDLE_DIGEST = "bundle-digest"
"""The trailing metadata of ServerMetadata and ModelMetadata that names the bundle."""

MODEL_SHA256 = "model-sha256"
"""Likewise, that is the hash of the deployed model's file."""

QUARANTINED = "quarantined-instances"
"""Likewise, that names the instances that were found to answer wrongly, the latest last."""

Context = ServicerContext[Any, Any]
_Request = TypeVar("_Request", bound=Message)


class InferenceService:
    """The methods of GRPCInferenceService, by their names there. They raise RequestErrors.

    What they need of a `context` is the client's time limit and metadata both ways.
    """

    def __init__(self, frontend: Answerer, model: ServedModel, metrics: Metrics) -> None:
        self._frontend = frontend
        self._model = model
        self._metrics = metrics

    async def ServerLive(self, request: ServerLiveRequest, context: Context) -> ServerLiveResponse:
        return ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: ServerReadyRequest, context: Context
    ) -> ServerReadyResponse:
        return ServerReadyResponse(ready=self._frontend.ready)

    async def ServerMetadata(
        self, request: ServerMetadataRequest, context: Context
    ) -> ServerMetadataResponse:
        self._name_bundle(context)
        return ServerMetadataResponse(name="parity-models", version=__version__)

    async def ModelReady(self, request: ModelReadyRequest, context: Context) -> ModelReadyResponse:
        self._model.check_model(request.name, request.version)
        return ModelReadyResponse(ready=self._frontend.ready)

    async def ModelMetadata(
        self, request: ModelMetadataRequest, context: Context
    ) -> ModelMetadataResponse:
        model = self._model
        model.check_model(request.name, request.version)
        self._name_bundle(context)
        about = model.metadata
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
            versions=about.versions,
            platform=about.platform,
            inputs=inputs,
            outputs=outputs,
        )

    async def ModelInfer(self, request: ModelInferRequest, context: Context) -> ModelInferResponse:
        with self.counting():
            return await self.answer(self.asked(request, context), context)

    # ModelInfer in its parts, for who bounds what it holds between them

    def read(self, data: bytes) -> ModelInferRequest:
        """The message. Raises a RequestError for what is none, or would be far too large."""
        check_size(data, self._model)
        return read_message(ModelInferRequest, data)

    def asked(self, request: ModelInferRequest, context: Context) -> InferRequest:
        """What the message asks. It keeps no more of the message than the rows."""
        model = self._model
        model.check_model(request.model_name, request.model_version)
        asked = decode_request(request, model)
        return with_tenant(asked, model.tenant_header, partial(_metadata, context))

    async def answer(self, asked: InferRequest, context: Context) -> ModelInferResponse:
        timeouts = (asked.timeout, context.time_remaining())
        timeout = min((each for each in timeouts if each is not None), default=None)
        answers = await self._frontend.infer(
            asked.rows, timeout, tenant=asked.tenant, exact=asked.exact
        )
        return encode_response(self._model, asked, answers.outputs, answers.sources)

    def _name_bundle(self, context: Context) -> None:
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
            status = AbandonedError.status
            raise
        finally:
            self._metrics.requests.labels(status).inc()


def _metadata(context: Context, key: str) -> Sequence[str]:
    """All values of the metadata that the client sent under `key`, which is in lower case."""
    return [str(value) for each, value in context.invocation_metadata() or () if each == key]


def read_message(request: type[_Request], data: bytes) -> _Request:
    """Raises InvalidRequestError for what is no such message."""
    try:
        return request.FromString(data)
    except DecodeError as error:
        raise InvalidRequestError(f"the request is no {request.DESCRIPTOR.full_name}") from error
