"""Queries over REST to any server of the Open Inference Protocol."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from parity_models.errors import LoadError
from parity_models.load.credentials import ANONYMOUS, Credentials, hint
from parity_models.load.target import Ask, NoAnswerError
from parity_models.load.wire import (
    HEADER_LENGTH,
    MalformedAnswerError,
    ModelMetadata,
    RequestWriter,
    RowAnswers,
    Tensors,
    max_answer,
    read_answers,
    read_index,
    read_model,
)
from parity_models.serving.http.answer_body import TooLongError, read_body
from parity_models.serving.unreachable import why_unreachable

IDLE_CONNECTION = 2.0
"""Seconds after which an idle connection is not used again: servers close theirs after five."""
PREPARATION_TIMEOUT = 10.0
"""Seconds that a server may take to describe itself."""
MAX_DESCRIPTION = 2**20


class RestTarget:
    """A served model, asked over connections that are kept; for `output` alone, if there is one."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: URL,
        model: ModelMetadata,
        binary: bool,
        output: str | None,
    ) -> None:
        self.model = model
        self._session = session
        self._url = url
        self._output = output
        self._writer = RequestWriter(model, binary, output)

    def prepare(self, tensors: Tensors) -> Ask:
        shapes = [array.shape for array in tensors.values()]
        rows, longest = shapes[0][0], max(max(shape) for shape in shapes)
        most = max_answer(self.model, rows, longest)
        return partial(self._post, *self._writer.request(tensors), rows, most)

    async def _post(
        self,
        body: bytes,
        headers: dict[str, str],
        rows: int,
        most: int,
        going_out: Callable[[], None],
    ) -> RowAnswers:
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, trace_request_ctx=going_out
            ) as response:
                content = await read_body(response, most)
        except TooLongError as error:
            raise NoAnswerError("malformed answer") from error
        except aiohttp.ClientError as error:
            raise NoAnswerError(f"connection: {type(error).__name__}") from error
        if response.status != HTTPStatus.OK:
            raise NoAnswerError(f"HTTP {response.status}")
        try:
            length = response.headers.get(HEADER_LENGTH)
            return read_answers(self.model, rows, content, length, self._output)
        except MalformedAnswerError as error:
            raise NoAnswerError("malformed answer") from error


@asynccontextmanager
async def rest_target(
    url: str,
    model: str,
    binary: bool,
    output: str | None = None,
    credentials: Credentials = ANONYMOUS,
) -> AsyncIterator[RestTarget]:
    """The model of the server at `url`, which is shown the `credentials`.

    Raises LoadError if one of them is not there.
    """
    async with _session(credentials) as session:
        path = f"{_base(url)}/v2/models/{quote(model, safe='')}"
        status, content = await _ask(session, url, "GET", path)
        if status != HTTPStatus.OK:
            raise LoadError(f"{url} has no model {model!r} (HTTP {status}){hint(status)}")
        infer = URL(f"{path}/infer", encoded=True)
        about = read_model(model, content)
        about.output(output)
        yield RestTarget(session, infer, about, binary, output)


async def find_model(url: str, credentials: Credentials = ANONYMOUS) -> str:
    """The name of the only model of the server at `url`.

    Raises LoadError if there are several, or the server cannot be asked or does not say.
    """
    async with _session(credentials) as session:
        status, content = await _ask(session, url, "POST", f"{_base(url)}/v2/repository/index")
    if hint(status):
        raise LoadError(f"{url} refuses (HTTP {status}){hint(status)}")
    names = read_index(content) if status == HTTPStatus.OK else []
    if not names:
        raise LoadError(f"{url} does not say which models it has; name one with --model")
    if len(names) > 1:
        raise LoadError(f"{url} has the models {', '.join(names)}; choose one with --model")
    return names[0]


def _session(credentials: Credentials) -> aiohttp.ClientSession:
    # The generator has its own limits, of queries in flight and of their time.
    connector = aiohttp.TCPConnector(
        limit=0, keepalive_timeout=IDLE_CONNECTION, ssl=credentials.tls
    )
    writes = aiohttp.TraceConfig()
    writes.on_request_chunk_sent.append(_before_write)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(),
        headers=credentials.headers,
        trace_configs=[writes],
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
            return response.status, await read_body(response, MAX_DESCRIPTION)
    except TimeoutError as error:
        raise LoadError(f"{server} does not answer within {PREPARATION_TIMEOUT:g} s") from error
    except TooLongError as error:
        raise LoadError(
            f"{server} describes its model in a way that cannot be read: {error}"
        ) from error
    except aiohttp.ClientError as error:
        raise LoadError(f"no server answers at {server}: {why_unreachable(error)}") from error
