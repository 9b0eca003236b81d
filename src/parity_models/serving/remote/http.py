"""HTTP connections to an upstream, and what its statuses and failures say of it."""

import time
from email.utils import parsedate_to_datetime
from errno import EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM
from math import isfinite
from ssl import SSLContext
from typing import TypeVar

import aiohttp
import msgspec

from parity_models.serving.http.answer_body import TooLongError, read_body
from parity_models.serving.remote.upstream import BusyError, Fault, UnitError, UpstreamError
from parity_models.serving.rest.protocol import HEADER_LENGTH
from parity_models.serving.unreachable import why_unreachable

MAX_TEXT = 300
"""Bytes of an error's text that are kept."""

KEEP_ALIVE = 4
"""Seconds that an idle connection is kept: less than the five that many servers keep theirs."""

_AWAY = (502, 503, 504)
"""Statuses of a server that is starting or stopping, or of a gateway that has none behind it."""

_OWN_WANTS = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL})
"""What keeps this machine from making a connection, and is no fault of the other one's."""

T = TypeVar("T")


class HttpConnections:
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

    async def close(self) -> None:
        """Close all of them."""
        await self._session.close()

    async def ask(
        self,
        method: str,
        path: str,
        limit: int,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[bytes, str]:
        """The body of the answer, of up to `limit` bytes, and the length of its JSON object.

        Raises UpstreamError or BusyError; of an answer to a `body` that is an error, UnitError.
        """
        try:
            try:
                return await self._try(method, path, limit, body, headers)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionResetError):
                # Perhaps the server had just closed a connection that was idle.
                return await self._try(method, path, limit, body, headers)
        except aiohttp.ClientConnectorError as error:
            if error.os_error.errno in _OWN_WANTS:
                reason = why_unreachable(error)
                raise BusyError(f"cannot be connected to for now: {reason}") from error
            reason = why_unreachable(error)
            raise UpstreamError(Fault.UNREACHABLE, f"cannot be reached: {reason}") from error
        except TooLongError as error:
            raise UpstreamError(Fault.GARBAGE, f"answered {error}") from error
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
            content = await read_body(response, limit)
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


def decode(decoder: msgspec.json.Decoder[T], text: bytes) -> T:
    """What an answer says. Raises UpstreamError if it cannot be read."""
    try:
        return decoder.decode(text)
    except (ValueError, RecursionError) as error:  # also msgspec's errors, and UnicodeDecodeError
        raise UpstreamError(Fault.GARBAGE, f"answered what cannot be read: {error}") from error
