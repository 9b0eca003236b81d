"""An upstream over REST, with binary tensor data both ways."""

from collections.abc import Sequence
from ssl import SSLContext
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from msgspec import Struct
from numpy.typing import NDArray

from parity_models.serving.remote.upstream import (
    MAX_HEAD,
    Fault,
    ModelMetadata,
    UnitError,
    UpstreamError,
    UpstreamModel,
    outputs_from,
    side_by_side,
)
from parity_models.serving.rest_codec import HEADER_LENGTH

MAX_TEXT = 300
"""Bytes of an error's text that are kept."""

KEEP_ALIVE = 4
"""Seconds that an idle connection is kept: less than the five that many servers keep theirs."""

_AWAY = (502, 503, 504)
"""Statuses of a server that is starting, stopping or overrun."""


class RestClient:
    """Connections to the server at `url`, made on the event loop that they are used on."""

    def __init__(self, url: str, tls: SSLContext) -> None:
        self._url = url
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
        text, _ = await self._ask("GET", _path(model), MAX_HEAD)
        return _decode(_METADATA, text)

    async def infer(self, model: UpstreamModel, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
        tensors = side_by_side(rows, model.input)
        header = msgspec.json.encode(
            _Request(
                [
                    _Input(
                        model.input.name,
                        model.input.datatype,
                        (len(rows), *model.input.shape),
                        {"binary_data_size": sum(each.nbytes for each in tensors)},
                    )
                ],
                [_Requested(model.output.name, {"binary_data": True})],
            )
        )
        size = len(rows) * model.output.zeros(1).nbytes
        answer, length = await self._ask(
            "POST",
            f"{_path(model.name)}/infer",
            size + MAX_HEAD,
            b"".join((header, *tensors)),
            {HEADER_LENGTH: str(len(header)), "Content-Type": "application/octet-stream"},
        )
        # Digits beyond a few thousand are no int to Python.
        readable = length.isascii() and length.isdigit() and len(length) < 20
        if not readable or (end := int(length)) > len(answer):
            raise UpstreamError(Fault.GARBAGE, "answered without binary tensor data; try gRPC")
        response = _decode(_RESPONSE, answer[:end])
        if [output.name for output in response.outputs] != [model.output.name]:
            raise UpstreamError(Fault.GARBAGE, f"answered without output {model.output.name!r}")
        (output,) = response.outputs
        data = memoryview(answer)[end:]
        return outputs_from(data, output.datatype, output.shape, model.output, len(rows))

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
            if response.status in _AWAY:
                raise UpstreamError(Fault.NOT_READY, f"is not ready ({response.status}): {text}")
            if body is None:
                raise UpstreamError(Fault.MISMATCH, f"answered {response.status} to {path}: {text}")
            raise UnitError(f"{self._url} answered {response.status}: {text}")


class _Input(Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int]


class _Requested(Struct):
    name: str
    parameters: dict[str, bool]


class _Request(Struct):
    inputs: list[_Input]
    outputs: list[_Requested]


class _Output(Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]


class _Response(Struct):
    outputs: tuple[_Output, ...]


_T = TypeVar("_T")
_RESPONSE = msgspec.json.Decoder(_Response)
_METADATA = msgspec.json.Decoder(ModelMetadata)


def _path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


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
