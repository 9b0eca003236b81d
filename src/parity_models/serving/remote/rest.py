"""An upstream over REST: binary tensor data both ways, or JSON where a server reads no other."""

import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from errno import EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM
from math import isfinite, prod
from ssl import SSLContext
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from msgspec import Raw
from numpy.typing import NDArray

from parity_models.models.tensor import TensorSpec
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.json_tensors import json_end, tensor_from_json
from parity_models.serving.protocol import (
    BINARY,
    HEADER_LENGTH,
    NO_DATA,
    ModelMetadata,
    OutputParameters,
    RequestedOutput,
    RequestMessage,
    ResponseMessage,
    ServerMetadata,
    TensorMessage,
    TensorParameters,
)
from parity_models.serving.remote.upstream import (
    MAX_HEAD,
    BusyError,
    Fault,
    UnitError,
    UpstreamError,
    UpstreamModel,
    check_output,
    outputs_from,
    rows_like,
    side_by_side,
)

MAX_TEXT = 300
"""Bytes of an error's text that are kept."""

JSON_VALUE = 32
"""Bytes that a number may take in an answer, with what stands around it."""

KEEP_ALIVE = 4
"""Seconds that an idle connection is kept: less than the five that many servers keep theirs."""

_AWAY = (502, 503, 504)
"""Statuses of a server that is starting or stopping, or of a gateway that has none behind it."""

_OWN_WANTS = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL})
"""What keeps this machine from making a connection, and is no fault of the other one's."""


class RestClient:
    """Connections to the server at `url`, made on the event loop that they are used on."""

    def __init__(self, url: str, tls: SSLContext) -> None:
        self._url = url
        self._binary = False
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE, ssl=tls),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
        )

    async def check_ready(self, model: str) -> None:
        await self._ask("GET", f"{_path(model)}/ready", MAX_HEAD)

    async def metadata(self, model: str) -> ModelMetadata:
        self._binary = await self._reads_binary()
        text, _ = await self._ask("GET", _path(model), MAX_HEAD)
        return _decode(_METADATA, text)

    async def _reads_binary(self) -> bool:
        try:
            text, _ = await self._ask("GET", "/v2", MAX_HEAD)
        except UpstreamError as error:
            if error.fault is not Fault.MISMATCH:
                raise
            return False  # it does not say what it is; JSON is what every server reads
        return BINARY in _decode(_SERVER, text).extensions

    async def infer(self, model: UpstreamModel, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
        body, headers = (_binary_request if self._binary else _json_request)(model, rows)
        limit = MAX_HEAD + JSON_VALUE * len(rows) * prod(model.output.shape)
        answer, length = await self._ask("POST", f"{_path(model.name)}/infer", limit, body, headers)
        try:
            end = json_end(length, len(answer)) if length else len(answer)
        except InvalidRequestError as error:
            raise UpstreamError(Fault.GARBAGE, f"answered what cannot be read: {error}") from error
        response = _decode(_RESPONSE, answer[:end])
        if [output.name for output in response.outputs] != [model.output.name]:
            raise UpstreamError(Fault.GARBAGE, f"answered without output {model.output.name!r}")
        (output,) = response.outputs
        if memoryview(output.data):
            return self._from_json(output, model.output, len(rows))
        data = memoryview(answer)[end:]
        return outputs_from(data, output.datatype, output.shape, model.output, len(rows))

    def _from_json(self, output: TensorMessage, spec: TensorSpec, rows: int) -> NDArray[Any]:
        check_output(output.datatype, output.shape, spec, rows)
        try:
            return tensor_from_json(output.data, spec, rows, f"the data of output {spec.name!r}")
        except InvalidRequestError as error:  # a value that JSON cannot say may be the unit's own
            raise UnitError(f"answered what is no {spec.datatype}: {error}") from error

    async def close(self) -> None:
        await self._session.close()

    async def _ask(
        self,
        method: str,
        path: str,
        limit: int,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[bytes, str]:
        """The body of the answer, of up to `limit` bytes, and the length of its JSON object."""
        try:
            try:
                return await self._try(method, path, limit, body, headers)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionResetError):
                # Perhaps the server had just closed a connection that was idle.
                return await self._try(method, path, limit, body, headers)
        except aiohttp.ClientConnectorError as error:
            if error.os_error.errno in _OWN_WANTS:
                raise BusyError(f"cannot be connected to for now: {error}") from error
            raise UpstreamError(Fault.UNREACHABLE, f"cannot be reached: {error}") from error
        except (aiohttp.ClientResponseError, ValueError) as error:
            raise UpstreamError(Fault.GARBAGE, f"does not speak HTTP: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(Fault.UNREACHABLE, f"cannot be reached: {error}") from error

    async def _try(
        self,
        method: str,
        path: str,
        limit: int,
        body: bytes | None,
        headers: dict[str, str] | None,
    ) -> tuple[bytes, str]:
        async with self._session.request(
            method, self._url + path, data=body, headers=headers, allow_redirects=False
        ) as response:
            content = await _read(response, limit)
            if response.status == 200:
                return content, response.headers.get(HEADER_LENGTH, "")
            text = " ".join(content[:MAX_TEXT].decode(errors="replace").split())
            if response.status == 429 or (response.status == 503 and body is not None):
                after = retry_after(response.headers.get("Retry-After", ""))
                raise BusyError(f"is busy ({response.status}): {text}", after)
            if response.status in _AWAY:
                raise UpstreamError(Fault.NOT_READY, f"is not ready ({response.status}): {text}")
            if body is None:
                raise UpstreamError(Fault.MISMATCH, f"answered {response.status} to {path}: {text}")
            raise UnitError(f"answered {response.status}: {text}")


_T = TypeVar("_T")
_RESPONSE = msgspec.json.Decoder(ResponseMessage)
_METADATA = msgspec.json.Decoder(ModelMetadata)
_SERVER = msgspec.json.Decoder(ServerMetadata)


def retry_after(value: str) -> float | None:
    """The seconds that a Retry-After says, as a number or a date; None where it says neither.

    (RFC 9110, section 10.2.3; the number may have decimals.)
    """
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds if isfinite(seconds) else None


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _binary_request(
    model: UpstreamModel, rows: Sequence[NDArray[Any]]
) -> tuple[bytes, dict[str, str]]:
    tensors = side_by_side(rows, model.input)
    size = sum(each.nbytes for each in tensors)
    header = _request(
        model,
        len(rows),
        TensorParameters(binary_data_size=size),
        wanted=OutputParameters(binary_data=True),
    )
    return b"".join((header, *tensors)), {
        HEADER_LENGTH: str(len(header)),
        "Content-Type": "application/octet-stream",
    }


def _json_request(
    model: UpstreamModel, rows: Sequence[NDArray[Any]]
) -> tuple[bytes, dict[str, str]]:
    values = [value for row in rows_like(rows, model.input) for value in row.ravel().tolist()]
    request = _request(model, len(rows), data=Raw(msgspec.json.encode(values)))
    return request, {"Content-Type": "application/json"}


def _request(
    model: UpstreamModel,
    rows: int,
    parameters: TensorParameters | None = None,
    *,
    data: Raw = NO_DATA,
    wanted: OutputParameters | None = None,
) -> bytes:
    """The JSON object of a request for the model's output."""
    spec = model.input
    tensor = TensorMessage(spec.name, spec.datatype, (rows, *spec.shape), parameters, data)
    outputs = (RequestedOutput(model.output.name, wanted),)
    return msgspec.json.encode(RequestMessage((tensor,), outputs=outputs))


def _decode(decoder: msgspec.json.Decoder[_T], text: bytes) -> _T:
    try:
        return decoder.decode(text)
    except (ValueError, RecursionError) as error:  # also msgspec's errors, and UnicodeDecodeError
        raise UpstreamError(Fault.GARBAGE, f"answered what cannot be read: {error}") from error


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    chunks = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise UpstreamError(Fault.GARBAGE, f"answered more than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)
