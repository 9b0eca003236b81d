"""An upstream over gRPC, with raw tensor contents both ways."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import StatusCode
from numpy.typing import NDArray

from parity_models.serving.grpc.inference_pb2 import (
    DESCRIPTOR,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
)
from parity_models.serving.grpc.service import MODEL_SHA256
from parity_models.serving.protocol import ModelMetadata, TensorMetadata
from parity_models.serving.remote.retry_info import STATUS_DETAILS, retry_info
from parity_models.serving.remote.upstream import (
    BusyError,
    Fault,
    UnitError,
    UpstreamError,
    UpstreamModel,
    outputs_from,
    side_by_side,
)

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
        # Bytes both ways: what cannot be read is not gRPC's to log.
        self._ready = self._method("ModelReady")
        self._metadata = self._method("ModelMetadata")
        self._infer = self._method("ModelInfer")

    async def check_ready(self, model: str) -> None:
        request = ModelReadyRequest(name=model).SerializeToString()
        if not _read(ModelReadyResponse, await _answer(self._ready(request))).ready:
            raise UpstreamError(Fault.NOT_READY, f"says that model {model!r} is not ready")

    async def metadata(self, model: str) -> ModelMetadata:
        request = ModelMetadataRequest(name=model).SerializeToString()
        call = self._metadata(request)
        about = _read(ModelMetadataResponse, await _answer(call))
        sha256 = dict(await call.trailing_metadata() or ()).get(MODEL_SHA256)
        inputs, outputs = (
            tuple(TensorMetadata(each.name, each.datatype, tuple(each.shape)) for each in tensors)
            for tensors in (about.inputs, about.outputs)
        )
        hashed = sha256 if isinstance(sha256, str) else None
        return ModelMetadata(
            about.name, inputs, outputs, tuple(about.versions), model_sha256=hashed
        )

    async def infer(self, model: UpstreamModel, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
        tensors = side_by_side(rows, model.input)
        spec = model.input
        request = ModelInferRequest(model_name=model.name)
        request.inputs.add(name=spec.name, datatype=spec.datatype, shape=(len(rows), *spec.shape))
        request.outputs.add(name=model.output.name)
        request.raw_input_contents.append(b"".join(tensors))
        try:
            answer = await self._infer(request.SerializeToString())
        except grpc.aio.AioRpcError as error:
            _check_busy(error)
            if error.code() is StatusCode.UNAVAILABLE:
                # Said by a server with too much to do, or here, of a connection that is gone.
                await self.check_ready(model.name)
                raise BusyError(f"is busy: {_text(error)}", certain=False) from error
            if error.code() is StatusCode.CANCELLED:
                raise _unreachable(error) from error
            raise UnitError(f"answered {_text(error)}") from error
        response = _read(ModelInferResponse, answer)
        if [output.name for output in response.outputs] != [model.output.name]:
            raise UpstreamError(Fault.GARBAGE, f"answered without output {model.output.name!r}")
        if len(response.raw_output_contents) != 1:
            raise UpstreamError(Fault.GARBAGE, "answered without raw output contents")
        output = response.outputs[0]
        return outputs_from(
            response.raw_output_contents[0],
            output.datatype,
            output.shape,
            model.output,
            len(rows),
        )

    async def close(self) -> None:
        await self._channel.close()

    def _method(self, name: str) -> Callable[[bytes], grpc.aio.UnaryUnaryCall[bytes, bytes]]:
        channel: Any = self._channel
        method: Callable[[bytes], grpc.aio.UnaryUnaryCall[bytes, bytes]]
        method = channel.unary_unary(f"/{_SERVICE}/{name}")
        return method


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
