"""Queries over REST to any server of the Open Inference Protocol."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
from numpy.typing import NDArray
from yarl import URL

from parity_models.errors import LoadError
from parity_models.load.target import Ask, NoAnswerError
from parity_models.load.wire import (
    HEADER_LENGTH,
    MalformedAnswerError,
    ModelMetadata,
    RequestWriter,
    RowAnswers,
    max_answer,
    read_answers,
    read_index,
    read_model,
)

IDLE_CONNECTION = 2.0
"""Seconds after which an idle connection is not used again: servers close theirs after five."""
PREPARATION_TIMEOUT = 10.0
"""Seconds that a server may take to describe itself."""
MAX_DESCRIPTION = 2**20


class RestTarget:
    """A served model, asked in requests of `batch` rows over connections that are kept."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: URL,
        model: ModelMetadata,
        batch: int,
        binary: bool,
    ) -> None:
        self.input, self.output = model.input, model.output
        self._session = session
        self._url = url
        self._model = model
        self._writer = RequestWriter(model, batch, binary)
        self._max_answer = max_answer(model, batch)

    def prepare(self, rows: NDArray[Any]) -> Ask:
        return partial(self._post, self._writer.body(rows), len(rows))

    async def _post(self, body: bytes, rows: int, going_out: Callable[[], None]) -> RowAnswers:
        try:
            async with self._session.post(
                self._url, data=body, headers=self._writer.headers, trace_request_ctx=going_out
            ) as response:
                content = await _read(response, self._max_answer)
        except aiohttp.ClientError as error:
            raise NoAnswerError(f"connection: {type(error).__name__}") from error
        if response.status != HTTPStatus.OK:
            raise NoAnswerError(f"HTTP {response.status}")
        try:
            return read_answers(self._model, rows, content, response.headers.get(HEADER_LENGTH))
        except MalformedAnswerError as error:
            raise NoAnswerError("malformed answer") from error


@asynccontextmanager
async def rest_target(url: str, model: str, batch: int, binary: bool) -> AsyncIterator[RestTarget]:
    """The model of the server at `url`. Raises LoadError if one of them is not there."""
    async with _session() as session:
        path = f"{_base(url)}/v2/models/{quote(model, safe='')}"
        status, content = await _ask(session, url, "GET", path)
        if status != HTTPStatus.OK:
            raise LoadError(f"{url} has no model {model!r} (HTTP {status})")
        infer = URL(f"{path}/infer", encoded=True)
        yield RestTarget(session, infer, read_model(model, content), batch, binary)


async def find_model(url: str) -> str:
    """The name of the only model of the server at `url`.

    Raises LoadError if there are several, or the server cannot be asked or does not say.
    """
    async with _session() as session:
        status, content = await _ask(session, url, "POST", f"{_base(url)}/v2/repository/index")
    names = read_index(content) if status == HTTPStatus.OK else []
    if not names:
        raise LoadError(f"{url} does not say which models it has; name one with --model")
    if len(names) > 1:
        raise LoadError(f"{url} has the models {', '.join(names)}; choose one with --model")
    return names[0]


def _session() -> aiohttp.ClientSession:
    # The generator has its own limits, of queries in flight and of their time.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_CONNECTION)
    writes = aiohttp.TraceConfig()
    writes.on_request_chunk_sent.append(_before_write)
    return aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(), trace_configs=[writes]
    )


async def _before_write(
    session: aiohttp.ClientSession,
    context: SimpleNamespace,
    body: aiohttp.TraceRequestChunkSentParams,
) -> None:
    # The signal's name says sent, but it comes before the write: of headers and body at once.
    context.trace_request_ctx()


def _base(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # half an IPv6 address, or a port that is none
        usable = False
    if not usable:
        raise LoadError(f"{url!r} is no server's address; it must be like http://127.0.0.1:8000")
    return url.rstrip("/")


async def _ask(
    session: aiohttp.ClientSession, server: str, method: str, url: str
) -> tuple[int, bytes]:
    """Status and body of what the server answers."""
    timeout = aiohttp.ClientTimeout(PREPARATION_TIMEOUT)
    try:
        async with session.request(method, URL(url, encoded=True), timeout=timeout) as response:
            return response.status, await _read(response, MAX_DESCRIPTION)
    except TimeoutError as error:
        raise LoadError(f"{server} does not answer within {PREPARATION_TIMEOUT:g} s") from error
    except aiohttp.ClientError as error:
        raise LoadError(f"no server answers at {server}: {error}") from error


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, of `limit` bytes at most; the protocol's errors are shorter than any answer."""
    chunks = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise aiohttp.ClientPayloadError(f"the answer is longer than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)
