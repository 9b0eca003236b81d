"""An upstream over REST: binary tensor data both ways, or JSON where a server reads no other."""

from collections.abc import Mapping, Sequence
from ssl import SSLContext
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Raw
from numpy.typing import NDArray

from parity_models.models.signature import Kind
from parity_models.models.tensor import TensorSpec
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.http.answer_size import JSON_VALUE, MAX_HEAD
from parity_models.serving.remote.http import HttpConnections, decode
from parity_models.serving.remote.upstream import (
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
from parity_models.serving.rest.json_tensors import json_end, tensor_from_json
from parity_models.serving.rest.protocol import (
    BINARY,
    HEADER_LENGTH,
    NO_DATA,
    SOFTWARE,
    ModelMetadata,
    OutputParameters,
    RequestedOutput,
    RequestMessage,
    ResponseMessage,
    ServerMetadata,
    TensorMessage,
    TensorParameters,
)
from parity_models.serving.tensor_bytes import size_in_bytes

TensorRows = Mapping[TensorSpec, Sequence[NDArray[Any]]]
"""The rows of each input of a unit."""


class RestClient:
    """Connections to the server at `url`, made on the event loop that they are used on."""

    def __init__(self, url: str, tls: SSLContext) -> None:
        self._http = HttpConnections(url, tls)
        self._binary = False
        self.abandons = False

    async def check_ready(self, model: UpstreamModel) -> None:
        await self._http.ask("GET", f"{_path(model)}/ready", MAX_HEAD)

    async def metadata(self, model: UpstreamModel) -> ModelMetadata:
        about = await self._server()
        self._binary = BINARY in about.extensions
        self.abandons = about.name == SOFTWARE  # others may work on, and still be busy
        text, _ = await self._http.ask("GET", _path(model), MAX_HEAD)
        return decode(_METADATA, text)

    async def load(self, model: UpstreamModel) -> None:
        check_loads((await self._server()).name, model)
        path = f"/v2/repository/models/{quote(model.name, safe='')}/load"
        await self._http.ask("POST", path, MAX_HEAD, b"{}", {"Content-Type": "application/json"})

    async def _server(self) -> ServerMetadata:
        try:
            text, _ = await self._http.ask("GET", "/v2", MAX_HEAD)
        except UpstreamError as error:
            if error.fault is not Fault.MISMATCH:
                raise
            return ServerMetadata()  # it does not say what it is; JSON is what every server reads
        return decode(_SERVER, text)

    async def infer(
        self, model: UpstreamModel, rows: Sequence[NDArray[Any]], headers: Mapping[str, str]
    ) -> NDArray[Any]:
        kind, tensors = tensors_of(rows, model.signature)
        write = _binary_request if self._binary else _json_request
        body, own = write(kind, tensors, len(rows), headers.get(REQUEST_ID))
        limit = MAX_HEAD + JSON_VALUE * len(rows) * kind.output.row_values
        path = f"{_path(model)}/infer"
        answer, length = await self._http.ask("POST", path, limit, body, {**headers, **own})
        try:
            end = json_end(length, len(answer)) if length else len(answer)
        except InvalidRequestError as error:
            raise UpstreamError(Fault.GARBAGE, f"answered what cannot be read: {error}") from error
        response = decode(_RESPONSE, answer[:end])
        check_answered([output.name for output in response.outputs], kind)
        return kind.output.join(
            self._outputs(response.outputs, memoryview(answer)[end:], kind, len(rows))
        )

    def _outputs(
        self, outputs: Sequence[TensorMessage], data: memoryview, kind: Kind, rows: int
    ) -> dict[str, NDArray[Any]]:
        """The outputs of an answer, whose binary `data` come in their order."""
        specs = {spec.name: spec for spec in kind.output.tensors}
        binary = [output for output in outputs if not memoryview(output.data)]
        found = {}
        for output in outputs:
            spec = specs[output.name]
            if memoryview(output.data):
                found[spec.name] = self._from_json(output, spec, rows)
                continue
            size = len(data) if output is binary[-1] else size_in_bytes(spec, rows)
            found[spec.name] = outputs_from(data[:size], output.datatype, output.shape, spec, rows)
            data = data[size:]
        return found

    def _from_json(self, output: TensorMessage, spec: TensorSpec, rows: int) -> NDArray[Any]:
        check_output(output.datatype, output.shape, spec, rows)
        try:
            return tensor_from_json(output.data, spec, rows, f"the data of output {spec.name!r}")
        except InvalidRequestError as error:  # a value that JSON cannot say may be the unit's own
            raise UnitError(f"answered what is no {spec.datatype}: {error}") from error

    async def close(self) -> None:
        await self._http.close()


_RESPONSE = msgspec.json.Decoder(ResponseMessage)
_METADATA = msgspec.json.Decoder(ModelMetadata)
_SERVER = msgspec.json.Decoder(ServerMetadata)


def _path(model: UpstreamModel) -> str:
    path = f"/v2/models/{quote(model.name, safe='')}"
    if model.version is None:
        return path
    return f"{path}/versions/{quote(model.version, safe='')}"


def _binary_request(
    kind: Kind, tensors: TensorRows, rows: int, id: str | None
) -> tuple[bytes, dict[str, str]]:
    data = [side_by_side(values) for values in tensors.values()]
    messages = [
        _tensor(spec, rows, TensorParameters(binary_data_size=len(each)))
        for spec, each in zip(tensors, data, strict=True)
    ]
    header = _request(kind, messages, id, OutputParameters(binary_data=True))
    return b"".join((header, *data)), {
        HEADER_LENGTH: str(len(header)),
        "Content-Type": "application/octet-stream",
    }


def _json_request(
    kind: Kind, tensors: TensorRows, rows: int, id: str | None
) -> tuple[bytes, dict[str, str]]:
    messages = []
    for spec, each in tensors.items():
        values = [value for row in each for value in row.ravel().tolist()]
        messages.append(_tensor(spec, rows, None, Raw(msgspec.json.encode(values))))
    return _request(kind, messages, id, None), {"Content-Type": "application/json"}


def _tensor(
    spec: TensorSpec, rows: int, parameters: TensorParameters | None, data: Raw = NO_DATA
) -> TensorMessage:
    return TensorMessage(spec.name, spec.datatype, (rows, *spec.shape), parameters, data)


def _request(
    kind: Kind, inputs: Sequence[TensorMessage], id: str | None, wanted: OutputParameters | None
) -> bytes:
    """The JSON object of a request for the model's outputs."""
    outputs = tuple(RequestedOutput(spec.name, wanted) for spec in kind.output.tensors)
    return msgspec.json.encode(RequestMessage(tuple(inputs), id, outputs=outputs))
