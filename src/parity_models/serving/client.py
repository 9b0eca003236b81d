"""A client of the Open Inference Protocol over HTTP.

The remote engine, the load generator, the lab and tests use it. The size of answers is limited,
whatever a server sends.
"""

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from errno import EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM
from functools import cached_property
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from parity_models.errors import UserError, needs
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.protocol import HEADER_LENGTH, ModelMetadata, ServerMetadata, read_json

with needs("remote", "asking other servers"):
    import aiohttp
    from yarl import URL

TOKEN = "PARM_TOKEN"
"""The environment variable of a token: other users of the machine cannot read it there."""

MAX_ANSWER = 2**20
"""Maximum size, in bytes, of an answer without tensors."""

_T = TypeVar("_T")

_MAX_TEXT = 300
"""Bytes of an error's text that are kept."""

_KEEP_ALIVE = 2.0
"""Seconds after which an idle connection is not used again; servers close theirs after five."""

_EXHAUSTED = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL})
"""Errors of connections that this machine, not the server, fails to make."""


@dataclass(frozen=True)
class Credentials:
    """A bearer `token` (RFC 6750) if there is one, and the certificates to trust over https: those
    of the PEM file `ca_file`, by default the system's.

    Raises UserError for a token that cannot be one, or a file that cannot be used.
    """

    token: str | None = None
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise UserError(
                "the token has characters that tokens cannot have, such as a line break"
            )
        _ = self.tls

    @cached_property
    def tls(self) -> ssl.SSLContext | bool:
        """The certificates to trust, in aiohttp's form; True: the system's."""
        if self.ca_file is None:
            return True
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise UserError(
                f"cannot read certificates from {self.ca_file}: {error}; give a PEM file"
            ) from error

    @classmethod
    def of_environment(cls) -> "Credentials":
        """Return the credentials that the variables PARM_TOKEN and PARM_CA_FILE name."""
        ca_file = os.environ.get("PARM_CA_FILE")
        return cls(os.environ.get(TOKEN), None if ca_file is None else Path(ca_file))


class ClientError(Exception):
    """A request without a usable answer."""


class UnreachableError(ClientError):
    """A server that cannot be connected to, or a broken connection.

    `exhausted`: this machine could not make a connection, whatever the server does.
    """

    def __init__(self, message: str, *, exhausted: bool = False) -> None:
        super().__init__(message)
        self.exhausted = exhausted


class MalformedAnswerError(ClientError):
    """An answer that does not follow HTTP or the protocol, or is too long."""


class StatusError(ClientError):
    """An answer with a status other than 200; `retry_after`, if the server gave it, in seconds."""

    def __init__(self, status: int, text: str, retry_after: float | None = None) -> None:
        super().__init__(f"HTTP {status}: {text}")
        self.status = status
        self.text = text
        self.retry_after = retry_after


class Client:
    """Connections to the server at `url`.

    With `retries`, a request on a connection that its server has just closed is sent again. Make
    it on the event loop that uses it. Raises UserError for an invalid address.
    """

    def __init__(
        self,
        url: str,
        credentials: Credentials = Credentials(),  # immutable
        *,
        retries: bool = False,
    ) -> None:
        self.url = check_address(url)
        self._retries = int(retries)
        writes = aiohttp.TraceConfig()
        writes.on_request_chunk_sent.append(_before_write)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_KEEP_ALIVE, ssl=credentials.tls
            ),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            trace_configs=[writes],
        )
        if credentials.token:
            self.authorize(credentials.token)

    def authorize(self, token: str) -> None:
        """Show this bearer token from now on."""
        self._session.headers["Authorization"] = f"Bearer {token}"

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        limit: int = MAX_ANSWER,
        going_out: Callable[[], None] | None = None,
    ) -> tuple[bytes, str | None]:
        """Return the body of the answer, of up to `limit` bytes, and the length of its JSON object
        if binary data follows it.

        `going_out` is called right before the request is written. Raises a ClientError: StatusError
        for any status but 200.
        """
        url = URL(self.url + path, encoded=True)
        try:
            for retries in range(self._retries, -1, -1):
                try:
                    async with self._session.request(
                        method,
                        url,
                        data=body,
                        headers=headers,
                        allow_redirects=False,
                        trace_request_ctx=going_out,
                    ) as response:
                        content = await _read(response, limit)
                    break
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError):
                    if not retries:
                        raise
        except aiohttp.ClientConnectorError as error:
            exhausted = error.os_error.errno in _EXHAUSTED
            raise UnreachableError(_reason(error), exhausted=exhausted) from error
        except (aiohttp.ClientResponseError, ValueError) as error:
            raise MalformedAnswerError(f"does not speak HTTP: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UnreachableError(str(error) or type(error).__name__) from error
        if response.status == 200:
            return content, response.headers.get(HEADER_LENGTH)
        text = " ".join(content[:_MAX_TEXT].decode(errors="replace").split())
        after = _retry_after(response.headers.get("Retry-After", ""))
        raise StatusError(response.status, text, after)

    async def decode(self, decoder: msgspec.json.Decoder[_T], method: str, path: str) -> _T:
        """Return the answer to a request without a body, decoded. Raises a ClientError."""
        content, _ = await self.ask(method, path)
        try:
            return read_json(decoder, memoryview(content), "the answer")
        except InvalidRequestError as error:
            raise MalformedAnswerError(str(error)) from error

    async def server(self) -> ServerMetadata:
        """Return the server as it describes itself. Raises a ClientError."""
        return await self.decode(_SERVER, "GET", "/v2")

    async def model(self, name: str, version: str | None = None) -> ModelMetadata:
        """Return a model as the server describes it. Raises a ClientError."""
        return await self.decode(_MODEL, "GET", model_path(name, version))

    async def models(self) -> list[str]:
        """Return the names of the models that the server lists. Raises a ClientError."""
        entries = await self.decode(_INDEX, "POST", "/v2/repository/index")
        return sorted({entry.name for entry in entries})


class _Entry(msgspec.Struct):
    name: str


_SERVER = msgspec.json.Decoder(ServerMetadata)
_MODEL = msgspec.json.Decoder(ModelMetadata)
_INDEX = msgspec.json.Decoder(list[_Entry])


def model_path(name: str, version: str | None = None) -> str:
    """Return the path of a model, in this version or in the one that the server chooses."""
    path = f"/v2/models/{quote(name, safe='')}"
    return path if version is None else f"{path}/versions/{quote(version, safe='')}"


def check_address(url: str) -> str:
    """Return a server's address, without a slash at its end. Raises UserError for another URL."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # half an IPv6 address, or an invalid port
        usable = False
    if not usable:
        raise UserError(f"{url!r} is not a server's address; it must be like http://127.0.0.1:8000")
    return url.rstrip("/")


def _retry_after(value: str) -> float | None:
    """Return the seconds, with decimals, in a Retry-After header; None if it is a date or empty."""
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if isfinite(seconds) else None


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the body. Raises MalformedAnswerError beyond `limit` bytes, and reads no further."""
    chunks = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise MalformedAnswerError(f"answered more than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


async def _before_write(
    session: aiohttp.ClientSession,
    context: SimpleNamespace,
    body: aiohttp.TraceRequestChunkSentParams,
) -> None:
    # Despite its name, the signal comes before the write, which is of headers and body at once.
    if context.trace_request_ctx is not None:
        context.trace_request_ctx()


def _reason(error: aiohttp.ClientConnectorError) -> str:
    """Return the reason that the system or TLS gives for a failed connection."""
    cause = error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):  # its numbers are not the system's
        return f"TLS failed: {cause.reason or cause}"
    number = cause.errno
    return os.strerror(number) if number and number > 0 else str(cause)
