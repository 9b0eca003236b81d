"""An upstream over gRPC: it gets raw tensor contents, and answers with raw or typed ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.grpc import protos as pb
from parity_models.serving.grpc.codec import DETAILS, MODEL_SHA256, SERVICE, read_contents
from parity_models.serving.protocol import OutputTensor, ServerMetadata, size_in_bytes
from parity_models.serving.remote.upstream import (
    MAX_TEXT,
    BusyError,
    Fault,
    Tensors,
    Token,
    UnitError,
    UpstreamClient,
    UpstreamError,
    UpstreamModel,
    give_token,
    unreadable,
)
from parity_models.serving.request_log import REQUEST_ID
from parity_models.tensors.signature import Kind, pack

_MAX_MESSAGE = 2**31 - 1
"""The largest limit of a message, in bytes, that gRPC takes."""

_TOO_LARGE = "larger than max"
"""Part of gRPC's own text for a large message, whose code otherwise means overload."""

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GrpcClient(UpstreamClient):
    """A connection to the server at `address` (host:port), over TLS if it is `secure`, with the
    certificates in `ca_file`, by default the system's.

    An answer may have `max_answer` bytes. Make it on the event loop that uses it.
    """

    def __init__(
        self,
        token: Token | None,
        address: str,
        max_answer: int,
        *,
        secure: bool,
        ca_file: Path | None,
    ) -> None:
        super().__init__(token)
        self._token_metadata: tuple[tuple[str, str], ...] = ()
        most = ("grpc.max_receive_message_length", min(max_answer, _MAX_MESSAGE))
        options = [*_OPTIONS, most]
        if secure:
            trusted = None if ca_file is None else ca_file.read_bytes()
            credentials = grpc.ssl_channel_credentials(trusted)
            self._channel = grpc.aio.secure_channel(address, credentials, options)
        else:
            self._channel = grpc.aio.insecure_channel(address, options)

    async def close(self) -> None:
        await self._channel.close()

    def _authorize(self, token: str) -> None:
        self._token_metadata = (("authorization", f"Bearer {token}"),)

    async def _check_ready(self, model: UpstreamModel) -> None:
        request = pb.ModelReadyRequest(name=model.name, version=model.version or "")
        said, _ = await self._call(request)
        if not said.ready:
            raise UpstreamError(Fault.NOT_READY, f"says that {model} is not ready")

    async def _server(self) -> ServerMetadata:
        about, _ = await self._call(pb.ServerMetadataRequest())
        return ServerMetadata(name=about.name)

    async def _sha256(self, model: UpstreamModel) -> str | None:
        request = pb.ModelMetadataRequest(name=model.name, version=model.version or "")
        _, call = await self._call(request)
        sha256 = dict(await call.trailing_metadata() or ()).get(MODEL_SHA256)
        return sha256 if isinstance(sha256, str) else None

    async def _ask(
        self, model: UpstreamModel, kind: Kind, tensors: Tensors, headers: Mapping[str, str]
    ) -> Sequence[OutputTensor]:
        request = pb.ModelInferRequest(
            model_name=model.name,
            model_version=model.version or "",
            id=headers.get(REQUEST_ID, ""),
        )
        for spec in kind.input.tensors:
            array = tensors[spec.name]
            request.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
            request.raw_input_contents.append(bytes(pack(array)))
        for spec in kind.output.tensors if model.prediction is not None else ():
            request.outputs.add(name=spec.name)
        try:
            response, _ = await self._call(request, headers)
        except BusyError as error:
            if error.after is None:  # it may be gone
                await self._check_ready(model)
            raise
        self._answered(model, response.model_version)
        try:
            return await _outputs(response, kind, len(array))
        except InvalidRequestError as error:
            raise unreadable(error) from error

    async def _call(
        self, request: Any, headers: Mapping[str, str] | None = None
    ) -> tuple[Any, Any]:
        """Return the message that answers this one, and the call; `headers` are a unit's."""
        name = request.DESCRIPTOR.name.removesuffix("Request")
        # Bytes both ways: an unreadable answer is not gRPC's to log.
        method: Any = self._channel.unary_unary(f"/{SERVICE.full_name}/{name}")
        metadata = (*self._token_metadata, *(headers or {}).items())
        call = method(request.SerializeToString(), metadata=metadata)
        try:
            return getattr(pb, f"{name}Response").FromString(await call), call
        except DecodeError as error:
            raise unreadable(error) from error
        except grpc.aio.AioRpcError as error:
            raise _fault(error, is_unit=headers is not None) from error


async def _outputs(response: Any, kind: Kind, rows: int) -> list[OutputTensor]:
    """Return the outputs in a response: all raw, or all typed.

    Raises InvalidRequestError for contents that do not fit.
    """
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise InvalidRequestError(f"there are {len(raw)} raw output contents")
    specs = {spec.name: spec for spec in kind.output.tensors}
    outputs = []
    for place, output in enumerate(response.outputs):
        data, spec = b"", specs.get(output.name)
        if spec is not None and raw:
            data, due = raw[place], size_in_bytes(spec, rows)
            if due not in (None, len(data)):
                raise InvalidRequestError(
                    f"output {output.name!r} has {len(data)} bytes of data, where {due} were due"
                )
        elif spec is not None:
            typed = await read_contents(output.contents, spec, rows, f"output {output.name!r}")
            data = bytes(pack(typed))
        shape = tuple(output.shape)
        outputs.append(OutputTensor(output.name, output.datatype, shape, memoryview(data)))
    return outputs


def _fault(error: grpc.aio.AioRpcError, *, is_unit: bool) -> Exception:
    code, text = error.code(), " ".join(f"{error.code().name}: {error.details()}".split())
    text = text[:MAX_TEXT]
    after = _retry_info(dict(error.trailing_metadata() or ()).get(DETAILS, b""))
    is_gone = code is StatusCode.UNAVAILABLE
    exhausted = code is StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE not in text
    if exhausted or (is_gone and after is not None):
        return BusyError(f"is busy: {text}", after)
    if is_gone and is_unit:
        # From an overloaded server, or from gRPC here, if the connection is gone.
        return BusyError(f"is busy: {text}")
    if is_gone or code is StatusCode.CANCELLED:
        return UpstreamError(Fault.UNREACHABLE, f"cannot be reached: {text}")
    if is_unit:
        return UnitError(f"answered {text}")
    if code is StatusCode.UNAUTHENTICATED:
        text += give_token()
    return UpstreamError(Fault.MISMATCH, f"answered {text}")


def _retry_info(details: str | bytes) -> float | None:
    """Return the seconds that a serialized google.rpc.Status asks for; None if it asks for none
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
