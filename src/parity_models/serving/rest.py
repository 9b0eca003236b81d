"""The Open Inference Protocol over HTTP: requests to models in, responses out.

`serving/http.py` carries them. Every error is a JSON object with an `error`, and the status of its
class in `serving/errors.py`.
"""

import asyncio
import logging
import re
import time
import zlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from parity_models import __version__
from parity_models.errors import UserError
from parity_models.options import Options, gather
from parity_models.scheduling.choice import DIFFER
from parity_models.serving.access import CHALLENGE, HEALTH, METRICS, Clients
from parity_models.serving.errors import (
    AbandonedError,
    ForbiddenError,
    InvalidRequestError,
    MethodError,
    NoStandInError,
    NotFoundError,
    Refused,
    RefusedError,
    RequestError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)
from parity_models.serving.inference import Call, Inference, InferRequest
from parity_models.serving.limits import Limits
from parity_models.serving.models import Result, ServedModel
from parity_models.serving.protocol import (
    BINARY,
    HEADER_LENGTH,
    SOFTWARE,
    ServerMetadata,
    read_json,
)
from parity_models.serving.request_log import ACCESS_LOG, RequestLog
from parity_models.serving.rest_codec import (
    JSON_OBJECT,
    read_request,
    rows_in_head,
    write_response,
)

_log = logging.getLogger(__name__)

# Messages

Headers = tuple[tuple[bytes, bytes], ...]

JSON: Headers = ((b"content-type", b"application/json"),)

MAX_ERROR = 2000
"""Characters of an error that are sent to a client."""

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""The argument that makes zlib read one of HTTP's content encodings."""

_DECOMPRESS_STEP = 2**20
"""Bytes read, and bytes written, by one step of decompression; limits are checked between steps."""


@dataclass(slots=True, eq=False)
class Response:
    """An answer without its framing: `content`, and the `more` that follows it.

    With `retry_after`, a request that comes earlier on the connection is refused only after that
    many seconds.
    """

    status: int
    content: bytes
    headers: Headers = JSON
    more: Sequence[bytes | memoryview] = ()
    retry_after: float = 0.0


class Request(Call[Response]):
    """A request: `target` as it was sent, `headers` by their names in lower case. Without a
    `method`, its head could not be read, and it has no id.

    Repeated headers are joined by commas in `headers`. The service sets the `handler` of its path,
    the `model` and `version` that it names, and whether it is an `inference`. Its carrier sets
    `is_local`, if it comes from this machine, `keeps`, if the connection goes on after it, and
    `answer`, if its head was enough to refuse it. The `body` comes in pieces. `is_json`: its body
    has a lower limit; `is_large`: it may be refused by its body's first bytes, and `peeks` until
    they have come.
    """

    log: RequestLog
    handler: "Handler | None" = None
    inference = is_json = is_local = is_large = peeks = False
    keeps = True
    answer: Response | None = None
    body: bytes | bytearray = b""
    max_body = 0

    def __init__(self, method: str, target: str, fields: Sequence[tuple[bytes, bytes]]) -> None:
        self.method = method
        self.target = target
        self.headers = headers = dict[str, str]()
        self._fields = fields
        for name, value in fields:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1").rstrip(" \t")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        self.log = RequestLog(method, target, headers)

    def values(self, name: str) -> Sequence[str]:
        named = (value for key, value in self._fields if key.decode("latin-1").lower() == name)
        return [value.decode("latin-1").rstrip(" \t") for value in named]

    def add(self, piece: bytes) -> None:
        """Add a piece to the body. Raises TooLargeError or OverloadedError."""
        if len(self.body) + len(piece) > self.max_body:
            raise self.too_large()
        self.hold(len(piece))
        if not self.body:
            self.body = piece
        else:
            if not isinstance(self.body, bytearray):
                self.body = bytearray(self.body)
            self.body += piece

    def read(self, model: ServedModel) -> InferRequest:
        return read_request(self.body, self.headers.get(HEADER_LENGTH), model)

    async def write(self, asked: InferRequest, result: Result) -> Response:
        head, binary = await write_response(asked, result, self.budget.turn)
        said = encoded(result.headers)
        if not binary:
            return Response(200, head, JSON + said)
        return Response(200, head, (_BINARY, (_HEADER_LENGTH, b"%d" % len(head)), *said), binary)

    def check_encoding(self) -> str:
        """Return the content encoding of the body. Raises RefusedError if it is not supported."""
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding != "identity" and encoding not in WINDOW_BITS:
            text = (
                f"content encoding {encoding[:40]!r} is not supported; send gzip, deflate or none"
            )
            raise RefusedError(text, 415, Refused.CONTENT_ENCODING)
        return encoding

    async def decompress(self) -> None:
        """Decode the body from its content encoding, within the same limits.

        Raises a RequestError for data that is not one whole stream.
        """
        encoding = self.check_encoding()
        if encoding == "identity":
            return
        decompressor = zlib.decompressobj(WINDOW_BITS[encoding])
        whole, at, compressed = memoryview(self.body), 0, len(self.body)
        rest: bytes | memoryview = b""
        self.body = b""
        try:
            while not decompressor.eof:
                if not rest:  # in slices: the rest of one is copied in each step
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
        self.hold(-compressed)

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
    """Return the JSON object of an error. A long text, which may repeat a client's, is cut off."""
    said = text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]}..."
    return json_response({"error": said}, status, headers)


# The service

_PATH = 200
"""Characters of a path that an error repeats."""

FRAME = "/ui/frame"
"""The path of the live page's state."""

_QUIET = (*HEALTH, METRICS, FRAME)
"""Paths that are polled, and left out of the access log."""

_OF_MODEL = re.compile(
    r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<end>/ready|/infer|/budget)?"
    r"|/v2/repository/models/(?P<kept>[^/]+)(?P<change>/load|/unload)"
)
"""The paths that name a model, and maybe a version."""

_LARGE_BODY = 64 * 2**10
"""Bytes of a body beyond which its first bytes are looked at before the others come."""

_BINARY = (b"content-type", b"application/octet-stream")
_HEADER_LENGTH = HEADER_LENGTH.encode()


class _SmallRequest(Struct):
    """A request without tensors: for an index (`ready`: only of ready versions), or for a load."""

    ready: bool = False
    parameters: dict[str, Any] = {}


_SMALL = msgspec.json.Decoder(_SmallRequest)


@dataclass(frozen=True, kw_only=True)
class Budget(Options):
    """A change of the budget of a running server."""

    differ: Annotated[float, DIFFER]


class Rest:
    """The service: it refuses a request by its head, or answers it when its body has arrived.

    `inference` answers for the models; `limits` bound the bytes of bodies. Only `clients` may ask
    for more than the server's health and `open_paths`. Paths in `lacks` do not exist; if `only` is
    given, only its paths do. `pages` are further handlers, with their methods, by path.
    """

    def __init__(
        self,
        inference: Inference,
        limits: Limits,
        *,
        clients: Clients = Clients(),
        lacks: Collection[str] = (),
        only: Collection[str] | None = None,
        pages: Mapping[str, tuple[str, Handler]] | None = None,
        open_paths: Collection[str] = (),
    ) -> None:
        self.limits = limits
        self.budget = inference.budget
        self._models = models = inference.models
        self.metrics = models.metrics
        self._clients = clients
        self._open = frozenset((*HEALTH, *open_paths))
        self._fixed: dict[str, tuple[str, Handler]] = {
            "/v2": ("GET", self._server_metadata),
            HEALTH[0]: ("GET", self._live),
            HEALTH[1]: ("GET", self._ready),
            "/v2/repository/index": ("POST", self._index),
            METRICS: ("GET", Scrapes(models.registry)),
            **(pages or {}),
        }
        self._of_model: dict[str | None, tuple[str, Handler]] = {
            None: ("GET", self._model_metadata),
            "/ready": ("GET", self._model_ready),
            "/infer": ("POST", inference.answer),
            "/budget": ("POST", self._budget),
            "/load": ("POST", self._load),
            "/unload": ("POST", self._unload),
        }
        for path in lacks if only is None else self._fixed.keys() - set(only):
            del self._fixed[path]
        if only is not None:
            self._of_model = {}

    def begin(self, request: Request, size: int) -> None:
        """Find the handler of a request by its head alone, and admit its body, of the declared
        `size` (0: not declared).

        Raises a RequestError if the head suffices to refuse the request.
        """
        target, asks, kept = request.target, None, None
        path = unquote(target.partition("?")[0] if target[:1] == "/" else _path_of_url(target))
        if self._clients.tokens is not None and path not in self._open:
            self._clients.check(request.headers.get("authorization"))
        method, handler = self._fixed.get(path, ("", None))
        found = _OF_MODEL.fullmatch(path) if handler is None and self._of_model else None
        if found is not None:
            name, request.version, asks, kept, change = found.groups()
            request.model, asks = name or kept, asks or change
            method, handler = self._of_model[asks]
        if handler is None:
            raise NotFoundError(
                f"nothing is at {path[:_PATH]}; paths begin with /v2, and POST "
                "/v2/repository/index lists the models"
            )
        if request.method != method and (request.method, method) != ("HEAD", "GET"):
            text = f"{path[:_PATH]} does not take the method {request.method}"
            raise MethodError(text, "GET, HEAD" if method == "GET" else method)
        request.handler = handler
        request.inference = asks == "/infer"
        if kept is not None or asks == "/budget":
            self._check_change(request, always=asks == "/budget")
        # A declared size takes no room yet: else a few clients that declare much and send nothing
        # would keep out all others.
        request.max_body, request.budget = self.limits.max_body, self.budget
        if request.inference:
            if "content-encoding" in request.headers:
                request.check_encoding()
            if size > _LARGE_BODY:
                request.is_large = request.peeks = True
                self._models.find(request.model, request.version)
            if HEADER_LENGTH not in request.headers and self.limits.max_json < request.max_body:
                request.is_json, request.max_body = True, self.limits.max_json
        if size > request.max_body:
            raise request.too_large()
        if self.budget.held + size > self.budget.most:
            raise self.budget.exceeded(size)

    def peek(self, request: Request) -> None:
        """Raise a RequestError if the first bytes of a large request's body, which say how many
        rows it has, suffice to refuse it."""
        request.peeks = False
        if "content-encoding" not in request.headers and (rows := rows_in_head(request.body)):
            version = self._models.find(request.model, request.version)
            if rows > version.model.max_rows:
                raise version.model.too_many(rows)
            version.predictor.check_admission(rows, None)

    async def answer(self, request: Request) -> Response:
        """Answer a request that began and was not refused. Cancelling it abandons its queries."""
        assert request.handler is not None
        try:
            if request.inference and "content-encoding" in request.headers:
                await request.decompress()
            response = await request.handler(request)
        except asyncio.CancelledError:
            self.abandoned(request)
            raise
        except RequestError as error:
            return self.refused(request, error)
        except Exception as error:
            text = "%s %s failed, id=%s"
            _log.error(text, request.method, request.target, request.log.id, exc_info=error)
            response = error_response(
                "the server failed to handle the request; its log says why", 500
            )
        self._ended(request, response.status)
        return response

    def refused(self, request: Request, error: RequestError) -> Response:
        """Return the answer to a request that ends with this error."""
        self.metrics.refuse(error)
        self._ended(request, error.status)
        headers: Headers = ()
        if isinstance(error, UnauthorizedError):
            headers = ((b"www-authenticate", CHALLENGE),)
        elif isinstance(error, MethodError):
            headers = ((b"allow", error.allow.encode()),)
        elif isinstance(error, NoStandInError):
            headers = ((b"x-parm-reason", error.reason.encode()),)
        elif error.retry_after is not None:
            headers = ((b"retry-after", b"%d" % max(1, round(error.retry_after))),)
        response = error_response(str(error), error.status, headers)
        if request.is_large and error.retry_after is not None:
            response.retry_after = max(1.0, error.retry_after)  # at least what its header says
        return response

    def abandoned(self, request: Request) -> None:
        """Count a request whose client went away before its body was whole."""
        self._ended(request, AbandonedError.status)

    def _ended(self, request: Request, status: int) -> None:
        """Count, and log, a request that has its answer."""
        log = request.log
        if ACCESS_LOG.isEnabledFor(logging.INFO) and log.method and log.path not in _QUIET:
            log.ended(status)
        if request.inference:
            (log.metrics or self.metrics).request(status).inc()

    def _check_change(self, request: Request, *, always: bool) -> None:
        """Raise a RequestError if the client may not change what is served. Unless `always`, the
        server of a single bundle, which refuses such changes itself, takes any client for now."""
        # Any site's page can reach this server from a browser in its network.
        if "origin" in request.headers:
            raise ForbiddenError(
                "web pages may not change what is served; send the request without the header "
                "Origin"
            )
        if always or self._models.only is None:
            self._clients.check_administrator(request.headers.get("authorization"))

    # Other requests

    async def _live(self, request: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, request: Request) -> Response:
        return _readiness({}, self._models.why_unready)

    async def _server_metadata(self, request: Request) -> Response:
        about = ServerMetadata(SOFTWARE, __version__, (BINARY, *self._models.extensions))
        only = self._models.only
        if only is not None:
            about = msgspec.structs.replace(
                about,
                bundle_digest=only.model.digest,
                model_sha256=only.model.sha256,
                quarantined_instances=tuple(only.predictor.quarantined) or None,
            )
        return json_response(about)

    async def _model_metadata(self, request: Request) -> Response:
        found = self._models.find(request.model, request.version)
        return json_response(found.metadata())

    async def _model_ready(self, request: Request) -> Response:
        try:
            version = self._models.find(request.model, request.version)
        except UnavailableError as error:
            return _readiness({"name": request.model}, str(error))
        return _readiness({"name": request.model}, version.why_unready)

    async def _budget(self, request: Request) -> Response:
        """Change the share of all answers that may differ from the model's."""
        version = self._models.find(request.model, request.version)
        try:
            budget = gather(Budget, None, (await _small(request)).parameters)
        except (TypeError, UserError) as error:
            raise InvalidRequestError(
                f'a budget is {{"parameters": {{"differ": SHARE}}}}: {error}'
            ) from error
        version.change_budget(budget.differ)
        return json_response(budget)

    # The model-repository extension (Triton's docs/protocol/extension_model_repository.md)

    async def _index(self, request: Request) -> Response:
        asked = await _small(request)
        return json_response(
            [each for each in self._models.index() if each.state == "READY" or not asked.ready]
        )

    async def _load(self, request: Request) -> Response:
        await self._models.load(request.model, (await _small(request)).parameters)
        return json_response({})

    async def _unload(self, request: Request) -> Response:
        await self._models.unload(request.model)
        return json_response({})


@lru_cache(64)
def encoded(headers: tuple[tuple[str, str], ...]) -> Headers:
    """Return headers as bytes."""
    return tuple((name.encode(), value.encode()) for name, value in headers)


async def _small(request: Request) -> _SmallRequest:
    """Return the content of a request without tensors."""
    await request.decompress()
    if len(request.body) > JSON_OBJECT:
        raise TooLargeError(
            f"the request has {len(request.body)} bytes; without a tensor it has at most "
            f"{JSON_OBJECT}"
        )
    return read_json(_SMALL, memoryview(request.body or b"{}"), "the request")


def _path_of_url(target: str) -> str:
    try:
        return urlsplit(target).path
    except ValueError as error:
        raise InvalidRequestError(f"the request's target is not a URL: {error}") from error


def _readiness(about: Mapping[str, Any], trouble: str) -> Response:
    if not trouble:
        return json_response({**about, "ready": True})
    return json_response({**about, "ready": False, "error": trouble}, 503)


# Metrics

SHARE = 0.05
"""The share of the time that may be used for writing metrics."""

_PLAIN, _OPEN_METRICS = "text/plain", "application/openmetrics-text;version=1.0.0"
"""The formats of metrics; a request's own words would become part of the media type."""


class Scrapes:
    """Answers requests for the metrics of `registry`, in at most SHARE of the server's time: any
    client may ask often, and writing metrics blocks the event loop for milliseconds. All waiting
    requests get the same answer, written after they arrived."""

    def __init__(self, registry: Collector) -> None:
        self._registry = registry
        self._next: dict[str, asyncio.Task[Response]] = {}  # by media type
        self._rests_until = 0.0

    async def __call__(self, request: Request) -> Response:
        is_open = "application/openmetrics-text" in request.headers.get("accept", "")
        encode, media_type = choose_encoder(_OPEN_METRICS if is_open else _PLAIN)
        answer = self._next.get(media_type)
        if answer is None:
            answer = asyncio.create_task(self._write(encode, media_type))
            self._next[media_type] = answer
        return await asyncio.shield(answer)

    async def _write(self, encode: Callable[[Collector], bytes], media_type: str) -> Response:
        await asyncio.sleep(self._rests_until - time.monotonic())
        del self._next[media_type]  # later requests get a later answer
        began = time.thread_time()
        try:
            content = encode(self._registry)
        finally:
            spent = time.thread_time() - began
            self._rests_until = time.monotonic() + spent * (1 / SHARE - 1)
        return Response(200, content, ((b"content-type", media_type.encode()),))
