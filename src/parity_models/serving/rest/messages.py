"""HTTP requests and responses, as the service takes and gives them, whatever carries them."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import msgspec

from parity_models.serving.access import CHALLENGE
from parity_models.serving.errors import (
    EncodingError,
    InvalidRequestError,
    RequestError,
    TooLargeError,
    UnauthorizedError,
)
from parity_models.serving.limits import ByteBudget
from parity_models.serving.metrics import Metrics
from parity_models.serving.refusals import Refused, whole_seconds
from parity_models.serving.request_log import REQUEST_ID, TRACEPARENT, TRACESTATE, RequestLog

Headers = tuple[tuple[bytes, bytes], ...]

JSON: Headers = ((b"content-type", b"application/json"),)

MAX_ERROR = 2000
"""Characters of an error that are sent to a client."""

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""The argument that makes zlib read one of HTTP's content encodings."""

_DECOMPRESS_STEP = 2**20
"""Bytes that are decompressed, of at most as many, before the limits are asked for more."""


@dataclass(slots=True, eq=False)
class Response:
    """An answer without its framing: the carrier adds the content's length.

    Where there are `pieces`, they are the content, and the connection ends with them.
    """

    status: int
    content: bytes
    headers: Headers = JSON
    pieces: AsyncGenerator[bytes, None] | None = None


class Body:
    """A body that arrives in pieces, up to `most` bytes, paid for from the server's budget as they
    come.

    `declared` is its size, if the client said it, else 0: more than `most`, or than there is room
    for, is refused before any of it is read. But a size that is only declared takes no room: a few
    clients that declare much and send nothing would keep out all others. Raises TooLargeError or
    OverloadedError.
    """

    __slots__ = ("_budget", "_most", "_size", "data")

    def __init__(self, most: int, budget: ByteBudget, declared: int = 0) -> None:
        self._most = most
        self._budget = budget
        self._size = 0
        self.data: bytes | bytearray = b""
        if declared:
            if declared > most:
                raise self._too_large()
            budget.check(declared)

    def add(self, piece: bytes) -> None:
        """Raises TooLargeError or OverloadedError."""
        if self._size + len(piece) > self._most:
            raise self._too_large()
        self._budget.take(len(piece))
        self._size += len(piece)
        if not self.data:
            self.data = piece
        else:
            if not isinstance(self.data, bytearray):
                self.data = bytearray(self.data)
            self.data += piece

    def release(self) -> None:
        """Return to the budget what it lent. Does no harm when called twice."""
        self._budget.give_back(self._size)
        self._size = 0
        self.data = b""

    async def decompress(self, encoding: str) -> None:
        """Replace the data by what it holds in this encoding, within the same limits.

        Raises a RequestError for data that is not one whole stream.
        """
        plain = Body(self._most, self._budget)
        try:
            await self._decompress_to(plain, encoding)
        except BaseException:
            plain.release()
            raise
        self.release()
        self.data, self._size = plain.data, plain._size

    async def _decompress_to(self, plain: "Body", encoding: str) -> None:
        decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
        whole, at = memoryview(self.data), 0
        rest: bytes | memoryview = b""
        try:
            while not decompressor.eof:
                if not rest:  # in slices, as what one step leaves is copied for the next
                    rest = whole[at : at + _DECOMPRESS_STEP]
                    at += len(rest)
                piece = await asyncio.to_thread(decompressor.decompress, rest, _DECOMPRESS_STEP)
                rest = decompressor.unconsumed_tail
                plain.add(piece)
                if not piece and not rest and at == len(whole):
                    break
        except zlib.error as error:
            raise InvalidRequestError(f"the body is not in {encoding} encoding: {error}") from error
        if not decompressor.eof or decompressor.unused_data or at < len(whole):
            raise InvalidRequestError(f"the body is not one whole stream in {encoding} encoding")

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"the body is larger than the {self._most} bytes this server takes at once (max_body); "
            "send fewer rows at once",
            why=Refused.MAX_BODY,
        )


_NO_BODY = Body(0, ByteBudget(0))


@dataclass(slots=True, eq=False)
class Request:
    """A request: `target` as it was sent, `headers` by their names in lower case.

    Values of a name that is `repeated` are joined by commas, and are there one by one. The service
    sets `handler` when it has found what the request is for, and the `model` and `version` that it
    names; `counts` says whether it asks for an inference, and `metrics` where that is counted, once
    it is known who answers. `local`: it is known to come from this machine. `log` has its id, where
    its head was read.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    repeated: Mapping[str, Sequence[str]] = field(default_factory=dict)
    body: Body = _NO_BODY
    handler: "Handler | None" = None
    model: str = ""
    version: str | None = None
    counts: bool = False
    metrics: Metrics | None = None
    local: bool = False
    log: RequestLog | None = None

    def values(self, name: str) -> Sequence[str]:
        """All values of a header, as they were given."""
        if name in self.repeated:
            return self.repeated[name]
        return [self.headers[name]] if name in self.headers else []

    @property
    def encoding(self) -> str:
        """The content encoding of the body. Raises EncodingError for one that is not read here."""
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding != "identity" and encoding not in _WINDOW_BITS:
            raise EncodingError(
                f"content encoding {encoding[:40]!r} is not read here; send gzip, deflate or none"
            )
        return encoding

    async def content(self) -> bytes | bytearray:
        """The body without its content encoding. Raises a RequestError."""
        if "content-encoding" in self.headers and self.encoding != "identity":
            await self.body.decompress(self.encoding)
        return self.body.data

    def release(self) -> None:
        """Return the memory of its body to the budget."""
        if self.body is not _NO_BODY:
            self.body.release()


Handler = Callable[[Request], Awaitable[Response]]


def request_of(method: str, target: str, fields: Iterable[tuple[bytes, bytes]]) -> Request:
    """The request with these header fields, in their order."""
    headers: dict[str, str] = {}
    repeated: dict[str, list[str]] = {}
    for name, value in fields:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").rstrip(" \t")
        if key in headers:
            repeated.setdefault(key, [headers[key]]).append(text)
        else:
            headers[key] = text
    for key, texts in repeated.items():
        headers[key] = ", ".join(texts)
    log = RequestLog(
        method, target, headers.get(REQUEST_ID), headers.get(TRACEPARENT), headers.get(TRACESTATE)
    )
    return Request(method, target, headers, repeated, log=log)


def json_response(content: object, status: int = HTTPStatus.OK, headers: Headers = ()) -> Response:
    """A response whose body is the content as JSON."""
    return Response(status, msgspec.json.encode(content), JSON + headers)


def error_response(text: str, status: int, headers: Headers = ()) -> Response:
    """The JSON object that every error is; a long text, which repeats what a client sent, is cut
    off."""
    said = text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]}..."
    return json_response({"error": said}, status, headers)


def refusal(error: RequestError) -> Response:
    """The answer to a request that ends with this error, with when to try again, if known."""
    if isinstance(error, UnauthorizedError):
        return error_response(str(error), error.status, ((b"www-authenticate", CHALLENGE),))
    later = error.retry_after
    headers = () if later is None else ((b"retry-after", b"%d" % whole_seconds(later)),)
    return error_response(str(error), error.status, headers)
