"""The Open Inference Protocol over HTTP, and V1's, over models: requests in, responses out.

What carries them is elsewhere: `serving/http/` over sockets of its own, asgi.py in another server.
Every error is a JSON object with an `error`, and the status of its class in `serving/errors.py`.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from msgspec.structs import replace
from prometheus_client import Counter

from parity_models import __version__
from parity_models.serving.access import HEALTH, METRICS
from parity_models.serving.errors import (
    AbandonedError,
    RequestError,
    UnauthorizedError,
    UnavailableError,
)
from parity_models.serving.in_flight import Result
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import Models, ServedVersion, why_unready
from parity_models.serving.refusals import Refused
from parity_models.serving.request_log import CURRENT
from parity_models.serving.rest import repository
from parity_models.serving.rest.codec import RequestReader, encode_response
from parity_models.serving.rest.compression import OfBody, decompressed, encoding_of
from parity_models.serving.rest.messages import (
    Handler,
    Request,
    Response,
    error_response,
    json_response,
    metrics_response,
    refusal,
)
from parity_models.serving.rest.paths import Asks, model_path, path_of
from parity_models.serving.rest.protocol import (
    BINARY,
    HEADER_LENGTH,
    SOFTWARE,
    ServerMetadata,
)
from parity_models.serving.rest.scrapes import Scrapes
from parity_models.serving.rest.v1 import predict_response, read_predict, status_response
from parity_models.serving.served_model import InferRequest, ServedModel
from parity_models.serving.tenancy import with_tenant
from parity_models.serving.tokens import Tokens

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing

_log = logging.getLogger(__name__)

_PATH = 200
"""Characters of a path that an error repeats."""
_PATHS = "paths begin with /v2, and POST /v2/repository/index lists the models"

_QUIET = (*HEALTH, METRICS)
"""Paths that are asked again and again, and are in no access log."""

_BINARY = (b"content-type", b"application/octet-stream")
_HEADER_LENGTH = HEADER_LENGTH.encode()

_KNOWN = 64
"""Targets of inference that are remembered."""


class Rest:
    """The service: it refuses a request by its head, or answers it when its body is there.

    `limits` and `budget` bound what bodies hold. `read_metrics` is what /metrics answers in place
    of the server's own `metrics`. With `tokens`, who shows none of them is told the server's health
    and nothing else, but for `open_paths`. `has` says which paths there are. `pages` are further
    handlers, with their methods, by path. `tracing` makes spans of requests.
    """

    def __init__(
        self,
        models: Models,
        metrics: Metrics,
        limits: Limits,
        budget: ByteBudget,
        read_metrics: Handler | None = None,
        *,
        tokens: Tokens | None = None,
        has: Callable[[str], bool] = lambda path: True,
        pages: Mapping[str, tuple[str, Handler]] | None = None,
        open_paths: Collection[str] = (),
        tracing: "Tracing | None" = None,
    ) -> None:
        self.limits = limits
        self.budget = budget
        self._models = models
        self._readers: WeakKeyDictionary[ServedVersion, RequestReader] = WeakKeyDictionary()
        self._metrics = metrics
        self._tokens = tokens
        self._open = frozenset((*HEALTH, *open_paths))
        self._has = has
        self._tracing = tracing
        self._counted: WeakKeyDictionary[Metrics, dict[int, Counter]] = WeakKeyDictionary()
        self._known: dict[str, tuple[str, str | None]] = {}
        self._fixed: dict[str, tuple[str, Handler]] = {
            "/v2": ("GET", self._server_metadata),
            HEALTH[0]: ("GET", self._live),
            HEALTH[1]: ("GET", self._ready),
            "/v1/models": ("GET", self._v1_models),
            "/v2/repository/index": ("POST", self._repository_index),
            METRICS: ("GET", Scrapes(read_metrics or self._own_metrics)),
            **(pages or {}),
        }
        self._of_model: dict[Asks, tuple[str, Handler]] = {
            Asks.METADATA: ("GET", self._model_metadata),
            Asks.READY: ("GET", self._model_ready),
            Asks.INFER: ("POST", self._infer),
            Asks.V1_STATUS: ("GET", self._v1_model),
            Asks.V1_PREDICT: ("POST", self._predict),
            Asks.LOAD: ("POST", self._load),
            Asks.UNLOAD: ("POST", self._unload),
        }

    def begin(self, request: Request) -> Response | None:
        """The answer to a request that its head suffices to refuse, else None."""
        try:
            self._admit(request)
            refused = self._route(request)
            if refused is not None:
                why = Refused.NOT_FOUND if refused.status == 404 else Refused.METHOD
                self._metrics.refusals.labels(why).inc()
                self._ended(request, refused.status)
            elif request.counts:
                encoding_of(request)
            return refused
        except RequestError as error:
            return self.refused(request, error)

    def refused(self, request: Request, error: RequestError) -> Response:
        """The answer to a request that ends with this error before it is answered."""
        if error.why is not None:
            self._metrics.refusals.labels(error.why).inc()
        self._ended(request, error.status)
        return refusal(error)

    def abandoned(self, request: Request) -> None:
        """The client of a request that began went away before its body was whole."""
        self._ended(request, AbandonedError.status)

    async def answer(self, request: Request) -> Response:
        """Answer a request that began and was not refused. Cancelling it abandons its queries."""
        assert request.handler is not None
        CURRENT.set(request.log)
        try:
            response = await self._traced(request, request.handler)
        except asyncio.CancelledError:
            self.abandoned(request)
            raise
        except RequestError as error:
            return self.refused(request, error)
        except Exception as error:
            id = request.log and request.log.id
            _log.error("%s %s failed, id=%s", request.method, request.target, id, exc_info=error)
            response = error_response(
                "the server failed to handle the request; its log says why", 500
            )
        self._ended(request, response.status)
        return response

    async def _traced(self, request: Request, handler: Handler) -> Response:
        """The handler's answer, within the request's span if there is to be one."""
        if self._tracing is None or not request.counts or request.log is None:
            return await handler(request)
        with self._tracing.request(request.log, request.headers):
            return await handler(request)

    # Where requests go

    def _admit(self, request: Request) -> None:
        """Raises UnauthorizedError for who has to show a token, and shows none of the tokens."""
        if (
            self._tokens is not None
            and not self._tokens.admits(request.headers.get("authorization"))
            and path_of(request.target) not in self._open
        ):
            self._metrics.unauthorized.inc()
            raise UnauthorizedError

    def _route(self, request: Request) -> Response | None:
        known = self._known.get(request.target) if request.method == "POST" else None
        if known is not None:
            request.model, request.version = known
            request.handler, request.counts = self._infer, True
            return None
        path = path_of(request.target)
        method, handler = "", None
        if self._has(path):
            method, handler = self._fixed.get(path) or self._route_of_model(request, path)
        if handler is None:
            return error_response(f"nothing is at {path[:_PATH]}; {_PATHS}", 404)
        methods = ("GET", "HEAD") if method == "GET" else (method,)
        if request.method not in methods:
            text = f"{path[:_PATH]} does not take the method {request.method}"
            return error_response(text, 405, ((b"allow", ", ".join(methods).encode()),))
        request.handler = handler
        if handler == self._infer and len(self._known) < _KNOWN:
            self._known[request.target] = request.model, request.version
        return None

    def _route_of_model(self, request: Request, path: str) -> tuple[str, Handler | None]:
        """The method and the handler; no handler if nothing is there. Raises NotFoundError for
        another model or version, UnavailableError for one that takes no requests, and
        ForbiddenError for what no web page may ask."""
        found = model_path(path)
        if found is None:
            return "", None
        request.model, request.version, asks = found
        method, handler = self._of_model[asks]
        if request.method == method or (request.method, method) == ("HEAD", "GET"):
            request.counts = asks in (Asks.INFER, Asks.V1_PREDICT)
            if asks in (Asks.LOAD, Asks.UNLOAD):
                repository.refuse_pages(request)
            elif asks not in (Asks.READY, Asks.V1_STATUS):
                self._models.find(request.model, request.version)
        return method, handler

    def _ended(self, request: Request, status: int) -> None:
        """A request has its answer: count it, and log it."""
        if request.log is not None and request.log.path not in _QUIET:
            request.log.ended(status)
        if request.counts:
            metrics = request.metrics or self._metrics
            counted = self._counted.setdefault(metrics, {})
            counter = counted.get(status)
            if counter is None:
                counter = counted[status] = metrics.requests.labels(status)
            counter.inc()

    # Handlers

    async def _infer(self, request: Request) -> Response:
        return await self._plain(request, self._infer_body)

    async def _plain(self, request: Request, answer: OfBody) -> Response:
        """The answer to a request with its body, decompressed if need be."""
        if "content-encoding" not in request.headers:
            return await answer(request, request.body)
        return await decompressed(request, answer, self.limits, self.budget)

    async def _infer_body(self, request: Request, body: bytes | bytearray) -> Response:
        version = self._chosen(request)
        reader = self._readers.get(version)
        if reader is None:
            reader = self._readers[version] = RequestReader(version.model)
        asked = reader.read(body, request.headers.get(HEADER_LENGTH))
        model, answers = await self._ask(request, version, asked)
        content, header_length = encode_response(model, asked, answers.outputs, answers.sources)
        if header_length is None:
            return Response(200, content)
        return Response(200, content, (_BINARY, (_HEADER_LENGTH, b"%d" % header_length)))

    async def _predict(self, request: Request) -> Response:
        return await self._plain(request, self._predict_body)

    async def _predict_body(self, request: Request, body: bytes | bytearray) -> Response:
        version = self._chosen(request)
        asked, by_row = read_predict(body, version.model)
        model, answers = await self._ask(request, version, asked)
        return predict_response(model, asked, answers, by_row)

    def _chosen(self, request: Request) -> ServedVersion:
        """Who answers a request. Nothing may be awaited before it is asked."""
        version = self._models.find(request.model, request.version)
        request.metrics = version.metrics
        return version

    async def _ask(
        self, request: Request, version: ServedVersion, asked: InferRequest
    ) -> tuple[ServedModel, Result]:
        """The answers to what a request's body asks, and the model that gave them."""
        if version.model.tenant_header is not None:
            asked = with_tenant(asked, version.model.tenant_header, request.values)
        if request.log is not None:
            request.log.id_in_body(asked.id)
        answers = await version.frontend.infer(
            asked.rows, asked.timeout, tenant=asked.tenant, exact=asked.exact
        )
        model = version.model
        if request.log is not None:
            request.log.answered(model.name, model.version, answers.sources)
        return model, answers

    async def _v1_models(self, request: Request) -> Response:
        return json_response({"models": self._models.names})

    async def _v1_model(self, request: Request) -> Response:
        version = self._models.find(request.model, request.version)
        return status_response(version.model, version.frontend.ready)

    async def _live(self, request: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, request: Request) -> Response:
        return _readiness({}, self._models.why_unready)

    async def _server_metadata(self, request: Request) -> Response:
        extensions = (BINARY, *self._models.extensions)
        about = ServerMetadata(SOFTWARE, __version__, extensions)
        only = self._models.only
        if only is not None:
            about = replace(
                about,
                bundle_digest=only.model.digest,
                model_sha256=only.model.sha256,
                quarantined_instances=tuple(only.frontend.quarantined) or None,
            )
        return json_response(about)

    async def _repository_index(self, request: Request) -> Response:
        return await self._plain(request, partial(repository.index, self._models))

    async def _load(self, request: Request) -> Response:
        return await self._plain(request, partial(repository.load, self._models))

    async def _unload(self, request: Request) -> Response:
        await self._models.unload(request.model)
        return json_response({})

    async def _model_metadata(self, request: Request) -> Response:
        found = self._models.find(request.model, request.version)
        return json_response(found.metadata(self._models.versions(found.model.name)))

    async def _model_ready(self, request: Request) -> Response:
        try:
            version = self._models.find(request.model, request.version)
        except UnavailableError as error:
            return _readiness({"name": request.model}, str(error))
        return _readiness({"name": request.model}, why_unready(version))

    async def _own_metrics(self, request: Request) -> Response:
        return metrics_response(request, self._metrics.registry)


def _readiness(about: Mapping[str, Any], trouble: str) -> Response:
    if not trouble:
        return json_response({**about, "ready": True})
    return json_response({**about, "ready": False, "error": trouble}, 503)
