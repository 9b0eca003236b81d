"""HTTP requests and responses, as the service takes and gives them, whatever carries them."""

import asyncio
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from parity_models.serving.access import CHALLENGE
from parity_models.serving.errors import (
    InvalidRequestError,
    MethodError,
    NoStandInError,
    Refused,
    RefusedError,
    RequestError,
    TooLargeError,
    UnauthorizedError,
    whole_seconds,
)
from parity_models.serving.limits import ByteBudget
from parity_models.serving.request_log import REQUEST_ID, TRACEPARENT, TRACESTATE, RequestLog

Headers = tuple[tuple[bytes, bytes], ...]

JSON: Headers = ((b"content-type", b"application/json"),)

MAX_ERROR = 2000
"""Characters of an error that are sent to a client."""

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""The argument that makes zlib read one of HTTP's content encodings."""

_DECOMPRESS_STEP = 2**20
"""Bytes read, and bytes written, by one step of decompression; limits are checked between steps."""

_NOTHING = ByteBudget(0)


@dataclass(slots=True, eq=False)
class Response:
    """An answer without its framing: the carrier adds the length of `content` and the `more` that
    follows it.

    Where there are `pieces`, they are the content, and the connection ends with them. With
    `retry_after`, a request that comes earlier on the connection is refused only after that many
    seconds.
    """

    status: int
    content: bytes
    headers: Headers = JSON
    more: Sequence[bytes | memoryview] = ()
    pieces: AsyncGenerator[bytes, None] | None = None
    retry_after: float = 0.0


class Request:
    """A request: `target` as it was sent, `headers` by their names in lower case. Without a
    `method`, its head could not be read, and it has no id.

    Values of a name that is `repeated` are joined by commas, and are there one by one. The service
    sets `handler` when it has found what the request is for, the `model` and `version` that it
    names, and whether it is an `inference`. Its carrier sets `is_local`, if it comes from this
    machine, `keeps`, if the connection goes on after it, and `answer`, where its head was enough to
    refuse it. The `body` comes in pieces; its bytes are held from the `budget`.
    `is_json`: that limits its body more; `is_large`: it may be refused by its body's first bytes,
    and `peeks` until they have come.
    """

    handler: "Handler | None" = None
    model = ""
    version: str | None = None
    inference = is_json = is_local = is_large = peeks = False
    keeps = True
    answer: Response | None = None
    body: bytes | bytearray = b""
    held, budget, max_body = 0, _NOTHING, 0

    def __init__(self, method: str, target: str, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self.method = method
        self.target = target
        self.headers = headers = dict[str, str]()
        self.repeated: dict[str, list[str]] = {}
        for name, value in fields:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1").rstrip(" \t")
            if key in headers:
                self.repeated.setdefault(key, [headers[key]]).append(text)
                headers[key] += f", {text}"
            else:
                headers[key] = text
        self.log = RequestLog(
            method,
            target,
            headers.get(REQUEST_ID),
            headers.get(TRACEPARENT),
            headers.get(TRACESTATE),
        )

    def values(self, name: str) -> Sequence[str]:
        """Return all values of a header, as they were given."""
        if name in self.repeated:
            return self.repeated[name]
        return [self.headers[name]] if name in self.headers else []

    def add(self, piece: bytes) -> None:
        """Add a piece to the body. Raises TooLargeError or OverloadedError."""
        size, budget = len(piece), self.budget
        if len(self.body) + size > self.max_body:
            raise self.too_large()
        if budget.held + size > budget.most:
            raise budget.exceeded(size)
        budget.held += size
        self.held += size
        if not self.body:
            self.body = piece
        else:
            if not isinstance(self.body, bytearray):
                self.body = bytearray(self.body)
            self.body += piece

    def release(self) -> None:
        """Return to the budget what it lent. Does no harm when called twice."""
        self.budget.held -= self.held
        self.held = 0
        self.body = b""

    def check_encoding(self) -> str:
        """Return the content encoding of the body. Raises RefusedError for one that is not read
        here."""
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding != "identity" and encoding not in _WINDOW_BITS:
            text = (
                f"content encoding {encoding[:40]!r} is not read here; send gzip, deflate or none"
            )
            raise RefusedError(text, 415, Refused.CONTENT_ENCODING)
        return encoding

    async def decompress(self) -> None:
        """Replace the body by what it holds in its content encoding, within the same limits.

        Raises a RequestError for data that is not one whole stream.
        """
        encoding = self.check_encoding()
        if encoding == "identity":
            return
        decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
        whole, at, compressed = memoryview(self.body), 0, len(self.body)
        rest: bytes | memoryview = b""
        self.body = b""
        try:
            while not decompressor.eof:
                if not rest:  # in slices, as what one step leaves is copied for the next
                    rest = whole[at : at + _DECOMPRESS_STEP]
                    at += len(rest)
                piece = await asyncio.to_thread(decompressor.decompress, rest, _DECOMPRESS_STEP)
                rest = decompressor.unconsumed_tail
                self.add(piece)
                if not piece and not rest and at == len(whole):
                    break
        except zlib.error as error:
            raise InvalidRequestError(f"the body is not in {encoding} encoding: {error}") from error
        if not decompressor.eof or decompressor.unused_data or at < len(whole):
            raise InvalidRequestError(f"the body is not one whole stream in {encoding} encoding")
        self.held -= compressed
        self.budget.held -= compressed

    def too_large(self) -> TooLargeError:
        """Return the error of a request whose body is larger than `max_body`."""
        limit, advice = "max_body", "send fewer rows at once"
        if self.is_json:
            limit, advice = "max_json", "send binary data, or fewer rows at once"
        return TooLargeError(
            f"the body is larger than the {self.max_body} bytes this server takes at once "
            f"({limit}); {advice}",
            why=Refused.MAX_BODY,
        )


Handler = Callable[[Request], Awaitable[Response]]


def json_response(content: object, status: int = HTTPStatus.OK, headers: Headers = ()) -> Response:
    """Return a response whose body is the content as JSON."""
    return Response(status, msgspec.json.encode(content), JSON + headers)


def error_response(text: str, status: int, headers: Headers = ()) -> Response:
    """Return the JSON object of an error. A long text, which repeats what a client sent, is cut
    off."""
    said = text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]}..."
    return json_response({"error": said}, status, headers)


def refusal(error: RequestError) -> Response:
    """Return the answer to a request that ends with this error, with when to try again, if
    known."""
    headers: Headers = ()
    if isinstance(error, UnauthorizedError):
        headers = ((b"www-authenticate", CHALLENGE),)
    elif isinstance(error, MethodError):
        headers = ((b"allow", error.allow.encode()),)
    elif isinstance(error, NoStandInError):
        headers = ((b"x-parm-reason", error.reason.encode()),)
    elif error.retry_after is not None:
        headers = ((b"retry-after", b"%d" % whole_seconds(error.retry_after)),)
    return error_response(str(error), error.status, headers)
