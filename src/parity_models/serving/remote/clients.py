"""Clients of upstreams over HTTP, by V2 and V1, and the choice of one by an upstream's URL."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Raw
from numpy.typing import NDArray

from parity_models.models.signature import TensorSpec
from parity_models.serving import v1
from parity_models.serving.client import (
    Client,
    ClientError,
    Credentials,
    MalformedAnswerError,
    StatusError,
    UnreachableError,
    model_path,
)
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.protocol import (
    BINARY,
    SOFTWARE,
    ModelMetadata,
    ServerMetadata,
    answer_limit,
    read_response,
    tensor_from_json,
    write_request,
)
from parity_models.serving.remote.upstream import (
    BusyError,
    Connect,
    Fault,
    PredictionProtocol,
    UnitError,
    Upstream,
    UpstreamClient,
    UpstreamError,
    UpstreamModel,
    check_outputs,
    tensors_of,
)
from parity_models.serving.request_log import REQUEST_ID

_AWAY = (502, 503, 504)
"""Statuses of a server that is starting or stopping, or of a gateway that has none behind it."""


def connecting(ca_file: Path | None) -> Connect:
    """Return a function that connects to upstreams, trusting the certificates in a PEM file, or
    with None the system's.

    Raises UserError for a file that has no certificates.
    """
    credentials = Credentials(ca_file=ca_file)

    def connect(upstream: Upstream, max_answer: int) -> UpstreamClient:
        scheme, address = upstream.url.split("://")
        if upstream.protocol is PredictionProtocol.V1:
            return V1Client(upstream.url, credentials)
        if scheme in ("http", "https"):
            return RestClient(upstream.url, credentials)
        # Only now: fleets that speak HTTP need no gRPC.
        from parity_models.serving.remote.grpc import GrpcClient

        return GrpcClient(address, ca_file, max_answer, secure=scheme == "grpcs")

    return connect


class RestClient:
    """An upstream over V2: binary tensor data both ways, or JSON where it reads no other."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        self._client = Client(url, credentials, retries=True)
        self._binary = False
        self.abandons = False

    async def check_ready(self, model: UpstreamModel) -> None:
        path = f"{model_path(model.name, model.version)}/ready"
        try:
            await self._client.ask("GET", path)
        except ClientError as error:
            raise _fault(error, path) from error

    async def metadata(self, model: UpstreamModel) -> ModelMetadata:
        try:
            about = await self._client.server()
        except ClientError as error:
            fault = _fault(error, "/v2")
            if not (isinstance(fault, UpstreamError) and fault.fault is Fault.MISMATCH):
                raise fault from error
            about = ServerMetadata()  # it does not describe itself; every server reads JSON
        self._binary = BINARY in about.extensions
        self.abandons = about.name == SOFTWARE  # others may work on, and still be busy
        try:
            return await self._client.model(model.name, model.version)
        except ClientError as error:
            raise _fault(error, model_path(model.name, model.version)) from error

    async def infer(
        self, model: UpstreamModel, rows: Sequence[NDArray[Any]], headers: Mapping[str, str]
    ) -> NDArray[Any]:
        kind, tensors = tensors_of(rows, model.signature)
        outputs = [spec.name for spec in kind.output.tensors]
        id = headers.get(REQUEST_ID)
        body, own = write_request(tensors, outputs, id=id, binary=self._binary)
        path = f"{model_path(model.name, model.version)}/infer"
        limit = answer_limit(len(rows) * kind.output.row_values)
        try:
            answer, length = await self._client.ask(
                "POST", path, body, {**headers, **own}, limit=limit
            )
            response = read_response(answer, length)
        except ClientError as error:
            raise _fault(error) from error
        except InvalidRequestError as error:
            raise _unreadable(error) from error
        found = check_outputs(response.outputs, kind, len(rows))
        arrays = {}
        for name, (_, output) in found.items():
            try:
                arrays[name] = output.array()
            except InvalidRequestError as error:
                if not isinstance(output.data, Raw):
                    raise _unreadable(error) from error
                # A value that JSON cannot say may be the unit's own.
                text = f"answered what is no {output.datatype}: {error}"
                raise UnitError(text) from error
        return kind.output.join(arrays)

    async def close(self) -> None:
        await self._client.close()


class V1Client:
    """An upstream over V1, where a prediction alone tells whether its model is the right one."""

    abandons = False

    def __init__(self, url: str, credentials: Credentials) -> None:
        self._client = Client(url, credentials, retries=True)

    async def check_ready(self, model: UpstreamModel) -> None:
        path = _v1_path(model)
        try:
            text, _ = await self._client.ask("GET", path)
            not_ready = v1.says_not_ready(text)
        except ClientError as error:
            raise _fault(error, path) from error
        except InvalidRequestError as error:
            raise _unreadable(error) from error
        if not_ready:
            raise UpstreamError(Fault.NOT_READY, f"says that {model} is not ready")

    async def metadata(self, model: UpstreamModel) -> None:
        return None

    async def infer(
        self, model: UpstreamModel, rows: Sequence[NDArray[Any]], headers: Mapping[str, str]
    ) -> NDArray[Any]:
        kind, tensors = tensors_of(rows, model.signature)
        try:
            body = v1.write_predict(tensors)
        except ValueError as error:
            raise UnitError(f"cannot be asked: {error}") from error
        names = sum(len(spec.name.encode()) + 6 for spec in kind.output.tensors)
        values = kind.output.row_values + len(kind.output.tensors) + names
        headers = {**headers, "Content-Type": "application/json"}
        try:
            answer, _ = await self._client.ask(
                "POST",
                f"{_v1_path(model)}:predict",
                body,
                headers,
                limit=answer_limit(len(rows) * values),
            )
            columns = v1.read_predictions(answer, [spec.name for spec in kind.output.tensors])
        except ClientError as error:
            raise _fault(error) from error
        except InvalidRequestError as error:
            raise _unreadable(error) from error
        return kind.output.join(
            {
                each.name: _column(columns[each.name], each, len(rows))
                for each in kind.output.tensors
            }
        )

    async def close(self) -> None:
        await self._client.close()


def _v1_path(model: UpstreamModel) -> str:
    return model_path(model.name, model.version).replace("/v2/", "/v1/", 1)


def _column(data: Raw, spec: TensorSpec, rows: int) -> NDArray[Any]:
    try:
        count = v1.count_rows(data)
    except InvalidRequestError as error:
        raise _unreadable(error) from error
    if count != rows:
        raise UpstreamError(Fault.GARBAGE, f"answered {count} predictions, where {rows} were due")
    try:
        return tensor_from_json(data, spec, rows, f"the data of output {spec.name!r}")
    except InvalidRequestError as error:
        raise UnitError(f"answered what is no {spec.datatype}: {error}") from error


def _fault(error: ClientError, path: str = "") -> Exception:
    """Translate a client's error; without a `path`, it is the answer to a unit."""
    if isinstance(error, StatusError):
        status, text = error.status, error.text
        if status == 429 or (status == 503 and not path):
            return BusyError(f"is busy ({status}): {text}", error.retry_after)
        if status in _AWAY:
            return UpstreamError(Fault.NOT_READY, f"is not ready ({status}): {text}")
        if path:
            return UpstreamError(Fault.MISMATCH, f"answered {status} to {path}: {text}")
        return UnitError(f"answered {status}: {text}")
    if isinstance(error, MalformedAnswerError):
        return UpstreamError(Fault.GARBAGE, f"answered what cannot be read: {error}")
    if isinstance(error, UnreachableError) and error.exhausted:
        return BusyError(f"cannot be connected to for now: {error}")
    return UpstreamError(Fault.UNREACHABLE, f"cannot be reached: {error}")


def _unreadable(error: InvalidRequestError) -> UpstreamError:
    return UpstreamError(Fault.GARBAGE, f"answered what cannot be read: {error}")
