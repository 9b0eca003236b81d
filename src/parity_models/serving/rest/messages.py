"""Requests and responses, as whatever carries HTTP hands them to the service and back."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import msgspec
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from parity_models.serving.errors import RequestError, TooLargeError, UnauthorizedError
from parity_models.serving.limits import ByteBudget
from parity_models.serving.metrics import Metrics
from parity_models.serving.refusals import Refused, whole_seconds
from parity_models.serving.request_log import REQUEST_ID, TRACEPARENT, TRACESTATE, RequestLog
from parity_models.serving.tokens import CHALLENGE

Headers = tuple[tuple[bytes, bytes], ...]

JSON: Headers = ((b"content-type", b"application/json"),)

_VERSIONS = ("0.0.1", "0.0.4", "1.0.0", "2.0.0")
"""Of the formats of metrics, those that Prometheus asks for."""

MAX_ERROR = 2000
"""Characters of an error that a client is told."""


@dataclass(slots=True, eq=False)
class Response:
    """An answer without its framing: the carrier adds the content's length.

    Where there are `pieces`, they are the content, and the connection's end is theirs.
    """

    status: int
    content: bytes
    headers: Headers = JSON
    pieces: AsyncGenerator[bytes, None] | None = None


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
    body: bytes | bytearray = b""
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
    log = RequestLog(
        method, target, headers.get(REQUEST_ID), headers.get(TRACEPARENT), headers.get(TRACESTATE)
    )
    return Request(method, target, headers, repeated, log=log)


Handler = Callable[[Request], Awaitable[Response]]


class Body:
    """A body that arrives in pieces, up to `most` bytes, paid for from the server's budget as they
    come.

    `declared` is its size, if the client said it: more than `most`, or than there is room for, are
    refused before anything of it is read. But what only was declared takes no room: a few clients
    that declare much and send nothing would else keep out all others. Raises TooLargeError or
    OverloadedError.
    """

    __slots__ = ("_budget", "_most", "_pieces", "_size")

    def __init__(self, most: int, budget: ByteBudget, declared: int | None) -> None:
        self._most = most
        self._budget = budget
        self._size = 0
        self._pieces: bytes | bytearray = b""
        if declared:
            if declared > most:
                raise too_large(most)
            budget.check(declared)

    def add(self, piece: bytes) -> None:
        """Raises TooLargeError or OverloadedError."""
        if self._size + len(piece) > self._most:
            raise too_large(self._most)
        self._budget.take(len(piece))
        self._size += len(piece)
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
        self._budget.give_back(self._size)
        self._size = 0
        self._pieces = b""


def too_large(most: int) -> TooLargeError:
    """The error of a body that is larger than `most` bytes."""
    return TooLargeError(
        f"the body is larger than the {most} bytes this server takes at once (max_body); send "
        "fewer rows at once",
        why=Refused.MAX_BODY,
    )


def json_response(content: object, status: int = HTTPStatus.OK, headers: Headers = ()) -> Response:
    """A response whose body is the content as JSON."""
    return Response(status, msgspec.json.encode(content), JSON + headers)


def metrics_format(request: Request) -> tuple[Callable[[Collector], bytes], str]:
    """How metrics are written for this request, and the media type: one of a few, whatever versions
    it accepts, as their names would become part of the media type."""
    accepted = request.headers.get("accept", "").split(",")
    return choose_encoder(",".join(each for each in accepted if _is_of_known_version(each)))


def _is_of_known_version(media_type: str) -> bool:
    parameters = (each.strip().partition("=") for each in media_type.split(";"))
    return all(key != "version" or value in _VERSIONS for key, _, value in parameters)


def metrics_response(request: Request, registry: Collector) -> Response:
    """What the registry holds, in the format of Prometheus's that the request accepts."""
    encode, media_type = metrics_format(request)
    return Response(HTTPStatus.OK, encode(registry), ((b"content-type", media_type.encode()),))


def error_response(text: str, status: int, headers: Headers = ()) -> Response:
    """The JSON object that every error is; a long text, which repeats what a client sent, is cut
    off."""
    said = text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]}..."
    return json_response({"error": said}, status, headers)


def refusal(error: RequestError) -> Response:
    """The answer to a request that ends with this error, with when to try again, if that is
    known."""
    if isinstance(error, UnauthorizedError):
        return error_response(str(error), error.status, ((b"www-authenticate", CHALLENGE),))
    later = error.retry_after
    headers = () if later is None else ((b"retry-after", b"%d" % whole_seconds(later)),)
    return error_response(str(error), error.status, headers)
