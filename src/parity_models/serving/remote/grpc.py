"""An upstream over gRPC: raw tensor contents go there, raw or typed ones come back."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from numpy.typing import NDArray

from parity_models.models.signature import Kind
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.grpc.calls import DETAILS
from parity_models.serving.grpc.codec import tensor_from_contents
from parity_models.serving.grpc.inference_pb2 import (
    DESCRIPTOR,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerMetadataResponse,
)
from parity_models.serving.grpc.service import MODEL_SHA256
from parity_models.serving.protocol import (
    SOFTWARE,
    ModelMetadata,
    TensorMetadata,
    little_endian,
    rows_from_bytes,
    size_in_bytes,
)
from parity_models.serving.remote.upstream import (
    BusyError,
    Fault,
    UnitError,
    UpstreamError,
    UpstreamModel,
    check_outputs,
    tensors_of,
)
from parity_models.serving.request_log import REQUEST_ID

MAX_TEXT = 300
"""Characters of an error's text that are kept."""

_MAX_MESSAGE = 2**31 - 1
"""The largest limit of a message, in bytes, that gRPC takes."""

_TOO_LARGE = "larger than max"
"""Part of gRPC's own text for a large message; its code means too much work elsewhere."""

_SERVICE = DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GrpcClient:
    """A connection to the server at `address` (host:port).

    An answer may have `max_answer` bytes. With `secure`, over TLS: the server is known by the
    certificates in the PEM file `ca_file`, by default the system's. Made on the event loop that it
    is used on.
    """

    def __init__(
        self, address: str, ca_file: Path | None, max_answer: int, *, secure: bool
    ) -> None:
        most = ("grpc.max_receive_message_length", min(max_answer, _MAX_MESSAGE))
        options = [*_OPTIONS, most]
        if secure:
            trusted = None if ca_file is None else ca_file.read_bytes()
            credentials = grpc.ssl_channel_credentials(trusted)
            self._channel = grpc.aio.secure_channel(address, credentials, options)
        else:
            self._channel = grpc.aio.insecure_channel(address, options)
        self.abandons = False
        # Bytes both ways: what cannot be read is not gRPC's to log.
        self._server = self._method("ServerMetadata")
        self._ready = self._method("ModelReady")
        self._metadata = self._method("ModelMetadata")
        self._infer = self._method("ModelInfer")

    async def check_ready(self, model: UpstreamModel) -> None:
        request = ModelReadyRequest(name=model.name, version=model.version or "")
        answer = await _answer(self._ready(request.SerializeToString()))
        if not _read(ModelReadyResponse, answer).ready:
            if model.version is not None:
                await self.metadata(model)  # which fails if there is no such version
            raise UpstreamError(Fault.NOT_READY, f"says that {model} is not ready")

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
        for spec in kind.input.tensors:
            array = tensors[spec.name]
            request.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
            request.raw_input_contents.append(little_endian(array).tobytes())
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
        return kind.output.join(_outputs(_read(ModelInferResponse, answer), kind, len(rows)))

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
    places = {output.name: place for place, output in enumerate(response.outputs)}
    outputs = {}
    for name, (spec, output) in check_outputs(response.outputs, kind, rows).items():
        try:
            if raw:
                data = raw[places[name]]
                if len(data) != size_in_bytes(spec, rows):
                    raise InvalidRequestError(
                        f"output {name!r} has {len(data)} bytes of data, where "
                        f"{size_in_bytes(spec, rows)} were due"
                    )
                outputs[name] = rows_from_bytes(spec, rows, data)
            else:
                what = f"output {name!r}"
                outputs[name] = tensor_from_contents(output.contents, spec, rows, what)
        except InvalidRequestError as error:
            raise UpstreamError(Fault.GARBAGE, f"answered what cannot be: {error}") from error
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
    after = _retry_info(dict(error.trailing_metadata() or ()).get(DETAILS, b""))
    exhausted = error.code() is StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE not in _text(error)
    if exhausted or (error.code() is StatusCode.UNAVAILABLE and after is not None):
        raise BusyError(f"is busy: {_text(error)}", after) from error


def _retry_info(details: str | bytes) -> float | None:
    """The seconds that a serialized google.rpc.Status asks for; None where it does not
    (google/rpc/error_details.proto of googleapis; https://aip.dev/194)."""
    info = RetryInfo()
    try:
        # A server may send text where bytes should be.
        status = Status.FromString(details if isinstance(details, bytes) else b"")
        if any(each.Unpack(info) for each in status.details):
            return float(info.retry_delay.seconds + 1e-9 * info.retry_delay.nanos)
    except DecodeError:
        pass
    return None


def _unreachable(error: grpc.aio.AioRpcError) -> UpstreamError:
    return UpstreamError(Fault.UNREACHABLE, f"cannot be reached: {_text(error)}")


def _text(error: grpc.aio.AioRpcError) -> str:
    return " ".join(f"{error.code().name}: {error.details()}".split())[:MAX_TEXT]


def _read(kind: Any, answer: bytes) -> Any:
    try:
        return kind.FromString(answer)
    except DecodeError as error:
        raise UpstreamError(Fault.GARBAGE, "answered what cannot be read") from error
