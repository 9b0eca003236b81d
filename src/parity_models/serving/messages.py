"""Requests and responses, as whatever carries HTTP hands them to the service and back."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from math import ceil
from typing import Any

import msgspec

from parity_models.serving.errors import OverloadedError, RequestError, TooLargeError
from parity_models.serving.limits import ByteBudget

Headers = tuple[tuple[bytes, bytes], ...]

JSON: Headers = ((b"content-type", b"application/json"),)


@dataclass(slots=True, eq=False)
class Response:
    """An answer without its framing: the carrier adds the content's length."""

    status: int
    content: bytes
    headers: Headers = JSON


@dataclass(slots=True, eq=False)
class Request:
    """A request: `target` as it was sent, `headers` by their names in lower case.

    Values of a name that is `repeated` are joined by commas, and are there one by one. The service
    sets `handler` when it has found what the request is for; `counts` says whether it asks for an
    inference.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    repeated: Mapping[str, Sequence[str]] = field(default_factory=dict)
    body: bytes | bytearray = b""
    handler: "Handler | None" = None
    counts: bool = False

    def values(self, name: str) -> Sequence[str]:
        """All values of a header, as they were given."""
        if name in self.repeated:
            return self.repeated[name]
        return [self.headers[name]] if name in self.headers else []


def request_of(method: str, target: str, fields: Iterable[tuple[bytes, bytes]]) -> Request:
    """The request with these header fields, in their order."""
    headers: dict[str, str] = {}
    repeated: dict[str, list[str]] = {}
    for name, value in fields:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key in headers:
            repeated.setdefault(key, [headers[key]]).append(text)
        else:
            headers[key] = text
    for key, texts in repeated.items():
        headers[key] = ", ".join(texts)
    return Request(method, target, headers, repeated)


Handler = Callable[[Request], Awaitable[Response]]


class Body:
    """A body that arrives in pieces, up to `most` bytes, paid for from the server's budget.

    `declared` is its size, if the client said it: more than `most` are refused before anything
    of it is read. Raises TooLargeError or OverloadedError.
    """

    __slots__ = ("_budget", "_held", "_most", "_pieces", "_size")

    def __init__(self, most: int, budget: ByteBudget, declared: int | None) -> None:
        self._most = most
        self._budget = budget
        self._held = 0
        self._size = 0
        self._pieces: bytes | bytearray = b""
        if declared:
            if declared > most:
                raise too_large(most)
            budget.take(declared)
            self._held = declared

    def add(self, piece: bytes) -> None:
        """Raises TooLargeError or OverloadedError."""
        self._size += len(piece)
        if self._size > self._held:
            if self._size > self._most:
                raise too_large(self._most)
            self._budget.take(self._size - self._held)
            self._held = self._size
        if not self._pieces:
            self._pieces = piece
        elif isinstance(self._pieces, bytearray):
            self._pieces += piece
        else:
            self._pieces = bytearray(self._pieces)
            self._pieces += piece

    def whole(self) -> bytes | bytearray:
        """What has come. Not copied, so it is not to be added to any more."""
        return self._pieces

    def release(self) -> None:
        """Give back what the budget lent. Once is enough, twice does no harm."""
        self._budget.give_back(self._held)
        self._held = 0
        self._pieces = b""


def too_large(most: int) -> TooLargeError:
    return TooLargeError(
        f"the body is larger than the {most} bytes this server takes at once; send fewer rows at "
        "once"
    )


def json_response(content: object, status: int = HTTPStatus.OK, headers: Headers = ()) -> Response:
    return Response(status, msgspec.json.encode(content), JSON + headers)


def error_response(text: str, status: int, headers: Headers = ()) -> Response:
    """The JSON object that every error is."""
    return json_response({"error": text}, status, headers)


def refusal(error: RequestError) -> Response:
    """The answer to a request that ends with this error, with when to try again, if that is known:
    whole seconds, 1 or more."""
    later: Any = error.retry_after
    if later is None and isinstance(error, OverloadedError):
        later = 1
    headers = () if later is None else ((b"retry-after", b"%d" % max(1, ceil(later))),)
    return error_response(str(error), error.status, headers)
