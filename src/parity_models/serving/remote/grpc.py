"""An upstream over gRPC: raw tensor contents go there, raw or typed ones come back."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode
from numpy.typing import NDArray

from parity_models.models.signature import Kind
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.grpc.codec import tensor_from_contents
from parity_models.serving.grpc.inference_pb2 import (
    DESCRIPTOR,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    RepositoryModelLoadRequest,
    ServerMetadataResponse,
)
from parity_models.serving.grpc.service import MODEL_SHA256
from parity_models.serving.remote.retry_info import STATUS_DETAILS, retry_info
from parity_models.serving.remote.upstream import (
    BusyError,
    Fault,
    UnitError,
    UpstreamError,
    UpstreamModel,
    check_answered,
    check_loads,
    check_output,
    outputs_from,
    side_by_side,
    tensors_of,
)
from parity_models.serving.request_log import REQUEST_ID
from parity_models.serving.rest.protocol import SOFTWARE, ModelMetadata, TensorMetadata

MAX_TEXT = 300
"""Characters of an error's text that are kept."""

_MAX_MESSAGE = 2**31 - 1
"""Bytes that gRPC can be told a message may have."""

_TOO_LARGE = "larger than max"
"""What gRPC itself says, with the code that means too much work elsewhere, of a large message."""

_SERVICE = DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GrpcClient:
    """A connection to the server at `address` (host:port), with TLS if there are credentials.

    An answer may have `max_answer` bytes. Made on the event loop that it is used on.
    """

    def __init__(
        self, address: str, credentials: grpc.ChannelCredentials | None, max_answer: int
    ) -> None:
        most = ("grpc.max_receive_message_length", min(max_answer, _MAX_MESSAGE))
        options = [*_OPTIONS, most]
        self._channel = (
            grpc.aio.insecure_channel(address, options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options)
        )
        self.abandons = False
        # Bytes both ways: what cannot be read is not gRPC's to log.
        self._server = self._method("ServerMetadata")
        self._ready = self._method("ModelReady")
        self._metadata = self._method("ModelMetadata")
        self._infer = self._method("ModelInfer")
        self._load = self._method("RepositoryModelLoad")

    async def check_ready(self, model: UpstreamModel) -> None:
        request = ModelReadyRequest(name=model.name, version=model.version or "")
        answer = await _answer(self._ready(request.SerializeToString()))
        if not _read(ModelReadyResponse, answer).ready:
            if model.version is not None:
                await self.metadata(model)  # which fails if there is no such version
            raise UpstreamError(Fault.NOT_READY, f"says that {model} is not ready")

    async def load(self, model: UpstreamModel) -> None:
        check_loads(SOFTWARE if await self._is_this_software() else "", model)
        request = RepositoryModelLoadRequest(model_name=model.name)
        await _answer(self._load(request.SerializeToString()))

    async def metadata(self, model: UpstreamModel) -> ModelMetadata:
        self.abandons = await self._is_this_software()
        about = ModelMetadataRequest(name=model.name, version=model.version or "")
        request = about.SerializeToString()
        call = self._metadata(request)
        said = _read(ModelMetadataResponse, await _answer(call))
        sha256 = dict(await call.trailing_metadata() or ()).get(MODEL_SHA256)
        inputs, outputs = (
            tuple(TensorMetadata(each.name, each.datatype, tuple(each.shape)) for each in tensors)
            for tensors in (said.inputs, said.outputs)
        )
        hashed = sha256 if isinstance(sha256, str) else None
        return ModelMetadata(said.name, inputs, outputs, tuple(said.versions), model_sha256=hashed)

    async def _is_this_software(self) -> bool:
        """Others may not take a cancelled call well: Triton 2.51 crashes now and then."""
        try:
            about = _read(ServerMetadataResponse, await _answer(self._server(b"")))
        except UpstreamError as error:
            if error.fault is not Fault.MISMATCH:
                raise
            return False  # it does not say what it is
        return bool(about.name == SOFTWARE)

    async def infer(
        self, model: UpstreamModel, rows: Sequence[NDArray[Any]], headers: Mapping[str, str]
    ) -> NDArray[Any]:
        kind, tensors = tensors_of(rows, model.signature)
        request = ModelInferRequest(
            model_name=model.name,
            model_version=model.version or "",
            id=headers.get(REQUEST_ID, ""),
        )
        for spec, values in tensors.items():
            shape = (len(rows), *spec.shape)
            request.inputs.add(name=spec.name, datatype=spec.datatype, shape=shape)
            request.raw_input_contents.append(side_by_side(values))
        for spec in kind.output.tensors:
            request.outputs.add(name=spec.name)
        try:
            metadata = tuple(headers.items())
            answer = await self._infer(request.SerializeToString(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            _check_busy(error)
            if error.code() is StatusCode.UNAVAILABLE:
                # Said by a server with too much to do, or here, of a connection that is gone.
                await self.check_ready(model)
                raise BusyError(f"is busy: {_text(error)}", certain=False) from error
            if error.code() is StatusCode.CANCELLED:
                raise _unreachable(error) from error
            raise UnitError(f"answered {_text(error)}") from error
        response = _read(ModelInferResponse, answer)
        check_answered([output.name for output in response.outputs], kind)
        return kind.output.join(_outputs(response, kind, len(rows)))

    async def close(self) -> None:
        await self._channel.close()

    def _method(self, name: str) -> Callable[..., grpc.aio.UnaryUnaryCall[bytes, bytes]]:
        channel: Any = self._channel
        method: Callable[..., grpc.aio.UnaryUnaryCall[bytes, bytes]]
        method = channel.unary_unary(f"/{_SERVICE}/{name}")
        return method


def _outputs(response: Any, kind: Kind, rows: int) -> dict[str, NDArray[Any]]:
    """The outputs in a response, by name: all raw, or all typed.

    Raises UpstreamError for what they cannot be.
    """
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise UpstreamError(Fault.GARBAGE, f"answered with {len(raw)} raw output contents")
    specs = {spec.name: spec for spec in kind.output.tensors}
    outputs = {}
    for number, output in enumerate(response.outputs):
        spec = specs[output.name]
        if raw:
            data = raw[number]
            outputs[spec.name] = outputs_from(data, output.datatype, output.shape, spec, rows)
            continue
        check_output(output.datatype, output.shape, spec, rows)
        try:
            values = tensor_from_contents(output.contents, spec, rows, f"output {spec.name!r}")
        except InvalidRequestError as error:
            raise UpstreamError(Fault.GARBAGE, f"answered what cannot be: {error}") from error
        outputs[spec.name] = values
    return outputs


async def _answer(call: Awaitable[bytes]) -> bytes:
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        _check_busy(error)
        if error.code() in (StatusCode.UNAVAILABLE, StatusCode.CANCELLED):
            raise _unreachable(error) from error
        raise UpstreamError(Fault.MISMATCH, f"answered {_text(error)}") from error
    return answer


def _check_busy(error: grpc.aio.AioRpcError) -> None:
    """Raises BusyError for what says that the server has too much to do."""
    after = retry_info(dict(error.trailing_metadata() or ()).get(STATUS_DETAILS, b""))
    exhausted = error.code() is StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE not in _text(error)
    if exhausted or (error.code() is StatusCode.UNAVAILABLE and after is not None):
        raise BusyError(f"is busy: {_text(error)}", after) from error


def _unreachable(error: grpc.aio.AioRpcError) -> UpstreamError:
    return UpstreamError(Fault.UNREACHABLE, f"cannot be reached: {_text(error)}")


def _text(error: grpc.aio.AioRpcError) -> str:
    return " ".join(f"{error.code().name}: {error.details()}".split())[:MAX_TEXT]


def _read(kind: Any, answer: bytes) -> Any:
    try:
        return kind.FromString(answer)
    except DecodeError as error:
        raise UpstreamError(Fault.GARBAGE, "answered what cannot be read") from error
