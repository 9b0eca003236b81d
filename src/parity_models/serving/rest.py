"""The Open Inference Protocol over HTTP, over a frontend: requests in, responses out.

What carries them is elsewhere: http.py over sockets of its own, asgi.py in another server. Every
error is a JSON object with an `error`, and the status of its class in errors.py.
"""

import asyncio
import logging
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from prometheus_client import Counter
from prometheus_client.exposition import choose_encoder

from parity_models import __version__
from parity_models.serving.asked import Answerer
from parity_models.serving.errors import (
    AbandonedError,
    EncodingError,
    InvalidRequestError,
    RequestError,
)
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.messages import (
    Body,
    Handler,
    Request,
    Response,
    error_response,
    json_response,
    refusal,
)
from parity_models.serving.metrics import Metrics
from parity_models.serving.protocol import BINARY, HEADER_LENGTH, ServerMetadata
from parity_models.serving.rest_codec import RequestReader, encode_response
from parity_models.serving.served_model import VERSION, ServedModel
from parity_models.serving.tenancy import with_tenant

_log = logging.getLogger(__name__)

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""How zlib is told which of HTTP's content encodings it reads."""

_DECOMPRESS_STEP = 2**20
"""Bytes that are decompressed before the limits are asked for more."""

_PATH = 200
"""Characters of a path that an error repeats."""

_BINARY = (b"content-type", b"application/octet-stream")
_HEADER_LENGTH = HEADER_LENGTH.encode()


class Rest:
    """The service: it refuses a request by its head, or answers it when its body is there.

    `limits` and `budget` bound what bodies hold. `read_metrics` is what /metrics answers in place
    of the server's own `metrics`.
    """

    def __init__(
        self,
        frontend: Answerer,
        model: ServedModel,
        metrics: Metrics,
        limits: Limits,
        budget: ByteBudget,
        read_metrics: Handler | None = None,
    ) -> None:
        self.limits = limits
        self.budget = budget
        self._frontend = frontend
        self._model = model
        self._reader = RequestReader(model)
        self._metrics = metrics
        self._counted: dict[int, Counter] = {}
        self._fixed: dict[str, tuple[str, Handler]] = {
            "/v2": ("GET", self._server_metadata),
            "/v2/health/live": ("GET", self._live),
            "/v2/health/ready": ("GET", self._ready),
            "/v2/repository/index": ("POST", self._repository_index),
            "/metrics": ("GET", read_metrics or self._own_metrics),
        }
        self._of_model: dict[str, tuple[str, Handler]] = {
            "": ("GET", self._model_metadata),
            "ready": ("GET", self._model_ready),
            "infer": ("POST", self._infer),
        }
        self._infer_target = f"/v2/models/{model.name}/infer"

    def begin(self, request: Request) -> Response | None:
        """The answer to a request that its head suffices to refuse, else None."""
        try:
            refused = self._route(request)
            if refused is None and request.counts:
                self._encoding(request)
            return refused
        except RequestError as error:
            return self.refused(request, error)

    def refused(self, request: Request, error: RequestError) -> Response:
        """The answer to a request that ends with this error before it is answered."""
        self._count(request, error.status)
        return refusal(error)

    def abandoned(self, request: Request) -> None:
        """The client of a request that began went away before its body was whole."""
        self._count(request, AbandonedError.status)

    async def answer(self, request: Request) -> Response:
        """Answer a request that began and was not refused. Cancelling it abandons its queries."""
        assert request.handler is not None
        try:
            response = await request.handler(request)
        except asyncio.CancelledError:
            self.abandoned(request)
            raise
        except RequestError as error:
            return self.refused(request, error)
        except Exception as error:
            _log.error("%s %s failed", request.method, request.target, exc_info=error)
            response = error_response(
                "the server failed to handle the request; its log says why", 500
            )
        self._count(request, response.status)
        return response

    # Where requests go

    def _route(self, request: Request) -> Response | None:
        if request.method == "POST" and request.target == self._infer_target:
            request.handler, request.counts = self._infer, True
            return None
        path = _path(request.target)
        method, handler = self._fixed.get(path) or self._route_of_model(request, path)
        if handler is None:
            text = (
                f"nothing is at {path[:_PATH]}; the Open Inference Protocol's paths begin with /v2"
            )
            return error_response(text, 404)
        methods = ("GET", "HEAD") if method == "GET" else (method,)
        if request.method not in methods:
            text = f"{path[:_PATH]} does not take the method {request.method}"
            return error_response(text, 405, ((b"allow", ", ".join(methods).encode()),))
        request.handler = handler
        return None

    def _route_of_model(self, request: Request, path: str) -> tuple[str, Handler | None]:
        """The method and the handler; no handler if nothing is there. Raises NotFoundError for
        another model or version, whatever the method."""
        root, _, rest = path.partition("/v2/models/")
        name, *parts = rest.split("/")
        version = None
        if parts[:1] == ["versions"] and len(parts) > 1:
            version, parts = parts[1], parts[2:]
            if not version:
                return "", None
        found = self._of_model.get("/".join(parts))
        if root or not name or found is None:
            return "", None
        method, handler = found
        if request.method == method or (request.method, method) == ("HEAD", "GET"):
            request.counts = handler == self._infer
            self._model.check_model(name, version)
        return found

    def _count(self, request: Request, status: int) -> None:
        if request.counts:
            counter = self._counted.get(status)
            if counter is None:
                counter = self._counted[status] = self._metrics.requests.labels(status)
            counter.inc()

    # Handlers

    async def _infer(self, request: Request) -> Response:
        if "content-encoding" in request.headers:
            encoding = self._encoding(request)
            if encoding != "identity":
                return await self._infer_compressed(request, encoding)
        return await self._infer_body(request, request.body)

    async def _infer_body(self, request: Request, body: bytes | bytearray) -> Response:
        model = self._model
        asked = self._reader.read(body, request.headers.get(HEADER_LENGTH))
        if model.tenant_header is not None:
            asked = with_tenant(asked, model.tenant_header, request.values)
        answers = await self._frontend.infer(
            asked.rows, asked.timeout, tenant=asked.tenant, exact=asked.exact
        )
        content, header_length = encode_response(model, asked, answers.outputs, answers.sources)
        if header_length is None:
            return Response(200, content)
        return Response(200, content, (_BINARY, (_HEADER_LENGTH, b"%d" % header_length)))

    async def _live(self, request: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, request: Request) -> Response:
        return self._readiness({})

    async def _server_metadata(self, request: Request) -> Response:
        about = ServerMetadata(
            "parity-models",
            __version__,
            (BINARY,),
            self._model.digest,
            self._model.sha256,
            tuple(self._frontend.quarantined) or None,
        )
        return json_response(about)

    async def _repository_index(self, request: Request) -> Response:
        state = "READY" if self._frontend.ready else "UNAVAILABLE"
        return json_response([{"name": self._model.name, "version": VERSION, "state": state}])

    async def _model_metadata(self, request: Request) -> Response:
        return json_response(self._model.metadata)

    async def _model_ready(self, request: Request) -> Response:
        return self._readiness({"name": self._model.name})

    async def _own_metrics(self, request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        content = encode(self._metrics.registry)
        return Response(200, content, ((b"content-type", media_type.encode()),))

    def _readiness(self, about: Mapping[str, Any]) -> Response:
        if self._frontend.ready:
            return json_response({**about, "ready": True})
        error = "no instance of the deployed model takes queries now"
        return json_response({**about, "ready": False, "error": error}, 503)

    # Compressed bodies

    def _encoding(self, request: Request) -> str:
        encoding = request.headers.get("content-encoding", "identity").lower()
        if encoding != "identity" and encoding not in _WINDOW_BITS:
            raise EncodingError(
                f"content encoding {encoding[:40]!r} is not read here; send gzip, deflate or none"
            )
        return encoding

    async def _infer_compressed(self, request: Request, encoding: str) -> Response:
        plain = Body(self.limits.max_body, self.budget, None)
        try:
            await _decompress(request.body, encoding, plain)
            return await self._infer_body(request, plain.whole())
        finally:
            plain.release()


def _path(target: str) -> str:
    """The path of a request's target, which is a path (with a query) or a whole URL."""
    if target.startswith("/"):
        return unquote(target.partition("?")[0])
    try:
        return unquote(urlsplit(target).path)
    except ValueError as error:
        raise InvalidRequestError(f"the request's target is not a URL: {error}") from error


async def _decompress(body: bytes | bytearray, encoding: str, plain: Body) -> None:
    """Add to `plain` what the compressed `body` holds. Raises a RequestError."""
    decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
    rest: bytes | bytearray = body
    try:
        while not decompressor.eof:
            piece = await asyncio.to_thread(decompressor.decompress, rest, _DECOMPRESS_STEP)
            rest = decompressor.unconsumed_tail
            plain.add(piece)
            if not piece and not rest:
                break
    except zlib.error as error:
        raise InvalidRequestError(f"the body is not in {encoding} encoding: {error}") from error
    if not decompressor.eof or decompressor.unused_data:
        raise InvalidRequestError(f"the body is not one whole stream in {encoding} encoding")
