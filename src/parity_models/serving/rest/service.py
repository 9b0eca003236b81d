"""The Open Inference Protocol over HTTP, and V1's, over models: requests in, responses out.

What carries them is elsewhere: `serving/http/` over sockets of its own, asgi.py in another server.
Every error is a JSON object with an `error`, and the status of its class in `serving/errors.py`.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct

from parity_models import __version__
from parity_models.serving.access import HEALTH, METRICS, Tokens
from parity_models.serving.errors import (
    AbandonedError,
    ForbiddenError,
    InvalidRequestError,
    RequestError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)
from parity_models.serving.in_flight import Result
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import Models, ServedVersion
from parity_models.serving.protocol import (
    BINARY,
    HEADER_LENGTH,
    JSON_OBJECT,
    SOFTWARE,
    InferRequest,
    ServerMetadata,
    read_json,
    read_request,
    write_response,
)
from parity_models.serving.refusals import Refused
from parity_models.serving.request_log import CURRENT
from parity_models.serving.rest.messages import (
    Handler,
    Request,
    Response,
    error_response,
    json_response,
    refusal,
)
from parity_models.serving.rest.scrapes import Scrapes, metrics_response
from parity_models.serving.tenancy import with_tenant
from parity_models.serving.v1 import read_predict, status_of, write_predictions

if TYPE_CHECKING:
    from parity_models.serving.tracing import Tracing

_log = logging.getLogger(__name__)

_PATH = 200
"""Characters of a path that an error repeats."""
_PATHS = "paths begin with /v2, and POST /v2/repository/index lists the models"

_QUIET = (*HEALTH, METRICS)
"""Paths that are asked again and again, and are in no access log."""

_OF_MODEL = re.compile(
    r"/v2/models/(?P<v2>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<end>/ready|/infer)?"
    r"|/v1/models/(?P<v1>[^/]+?)(?:/versions/(?P<v1_version>[^/]+?))?(?P<predict>:predict)?"
    r"|/v2/repository/models/(?P<kept>[^/]+)(?P<change>/load|/unload)"
)
"""The paths that name a model, and maybe a version."""

_BINARY = (b"content-type", b"application/octet-stream")
_HEADER_LENGTH = HEADER_LENGTH.encode()


class _IndexRequest(Struct):
    ready: bool = False


class _LoadRequest(Struct):
    parameters: dict[str, Any] = {}


_INDEX = msgspec.json.Decoder(_IndexRequest)
_LOAD = msgspec.json.Decoder(_LoadRequest)


class Rest:
    """The service: it refuses a request by its head, or answers it when its body is there.

    `limits` and `budget` bound what bodies hold. `read_metrics` answers /metrics in place of the
    server's own `metrics`. With `tokens`, clients that show none of them may ask for the server's
    health and nothing else, but for `open_paths`. `has` says which paths there are. `pages` are
    further handlers, with their methods, by path. `tracing` makes spans of requests.
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
        self._metrics = metrics
        self._tokens = tokens
        self._open = frozenset((*HEALTH, *open_paths))
        self._has = has
        self._tracing = tracing
        self._fixed: dict[str, tuple[str, Handler]] = {
            "/v2": ("GET", self._server_metadata),
            HEALTH[0]: ("GET", self._live),
            HEALTH[1]: ("GET", self._ready),
            "/v1/models": ("GET", self._v1_models),
            "/v2/repository/index": ("POST", self._index),
            METRICS: ("GET", Scrapes(read_metrics or self._own_metrics)),
            **(pages or {}),
        }
        self._of_model: dict[str | None, tuple[str, Handler]] = {
            None: ("GET", self._model_metadata),
            "/ready": ("GET", self._model_ready),
            "/infer": ("POST", self._infer),
            "": ("GET", self._v1_model),
            ":predict": ("POST", self._predict),
            "/load": ("POST", self._load),
            "/unload": ("POST", self._unload),
        }

    def begin(self, request: Request) -> Response | None:
        """The answer to a request that its head suffices to refuse, else None."""
        try:
            path = _path_of(request.target)
            if self._tokens is not None and path not in self._open:
                self._check_token(self._tokens, request)
            method, handler = self._route(request, path)
            if handler is None:
                text = f"nothing is at {path[:_PATH]}; {_PATHS}"
                return self._refused(request, error_response(text, 404), Refused.NOT_FOUND)
            if request.method != method and (request.method, method) != ("HEAD", "GET"):
                text = f"{path[:_PATH]} does not take the method {request.method}"
                allow = ((b"allow", b"GET, HEAD" if method == "GET" else method.encode()),)
                return self._refused(request, error_response(text, 405, allow), Refused.METHOD)
            request.handler = handler
            if request.counts and "content-encoding" in request.headers:
                _ = request.encoding
            return None
        except RequestError as error:
            return self.refused(request, error)

    def refused(self, request: Request, error: RequestError) -> Response:
        """The answer to a request that ends with this error before it is answered."""
        return self._refused(request, refusal(error), error.why)

    def _refused(self, request: Request, answer: Response, why: Refused | None) -> Response:
        if why is not None:
            self._metrics.refusals.labels(why).inc()
        self._ended(request, answer.status)
        return answer

    def abandoned(self, request: Request) -> None:
        """Count a request whose client went away before its body was whole."""
        self._ended(request, AbandonedError.status)

    async def answer(self, request: Request) -> Response:
        """Answer a request that began and was not refused. Cancelling it abandons its queries."""
        assert request.handler is not None
        log = request.log
        CURRENT.set(log)
        try:
            if self._tracing is None or not request.counts or log is None:
                response = await request.handler(request)
            else:
                with self._tracing.request(log, request.headers):
                    response = await request.handler(request)
        except asyncio.CancelledError:
            self.abandoned(request)
            raise
        except RequestError as error:
            return self.refused(request, error)
        except Exception as error:
            id = log and log.id
            _log.error("%s %s failed, id=%s", request.method, request.target, id, exc_info=error)
            response = error_response(
                "the server failed to handle the request; its log says why", 500
            )
        self._ended(request, response.status)
        return response

    def _check_token(self, tokens: Tokens, request: Request) -> None:
        """Raises UnauthorizedError for a request that shows none of the tokens."""
        if not tokens.admits(request.headers.get("authorization")):
            self._metrics.unauthorized.inc()
            raise UnauthorizedError

    def _route(self, request: Request, path: str) -> tuple[str, Handler | None]:
        """The method and the handler of a path; no handler if nothing is there.

        Raises NotFoundError for another model or version, UnavailableError for one that takes no
        requests, and ForbiddenError for what web pages may not ask.
        """
        if not self._has(path):
            return "", None
        if path in self._fixed:
            return self._fixed[path]
        found = _OF_MODEL.fullmatch(path)
        if found is None:
            return "", None
        v2, version, end, v1, v1_version, predict, kept, change = found.groups()
        request.model, request.version = v2 or v1 or kept, version or v1_version
        asks = end if v2 else change if kept else predict or ""
        method, handler = self._of_model[asks]
        if request.method == method or (request.method, method) == ("HEAD", "GET"):
            request.counts = asks in ("/infer", ":predict")
            if kept:
                _refuse_pages(request)
            elif asks not in ("/ready", ""):
                self._models.find(request.model, request.version)
        return method, handler

    def _ended(self, request: Request, status: int) -> None:
        """Count, and log, a request that has its answer."""
        if request.log is not None and request.log.path not in _QUIET:
            request.log.ended(status)
        if request.counts:
            (request.metrics or self._metrics).requests.labels(status).inc()

    # Inference

    async def _infer(self, request: Request) -> Response:
        body = await request.content()
        version = self._chosen(request)
        asked = read_request(body, request.headers.get(HEADER_LENGTH), version.model)
        answers = await self._ask(request, version, asked)
        content, header_length = write_response(
            version.model, asked, answers.outputs, answers.sources
        )
        if header_length is None:
            return Response(200, content)
        return Response(200, content, (_BINARY, (_HEADER_LENGTH, b"%d" % header_length)))

    async def _predict(self, request: Request) -> Response:
        body = await request.content()
        version = self._chosen(request)
        asked, by_row = read_predict(body, version.model)
        answers = await self._ask(request, version, asked)
        content, headers = write_predictions(version.model, asked, answers, by_row)
        return json_response(content, headers=headers)

    def _chosen(self, request: Request) -> ServedVersion:
        """The version that answers a request; nothing may be awaited before it is asked."""
        version = self._models.find(request.model, request.version)
        request.metrics = version.metrics
        return version

    async def _ask(self, request: Request, version: ServedVersion, asked: InferRequest) -> Result:
        """The answers to a request."""
        model, log = version.model, request.log
        if model.tenant_header is not None:
            asked = with_tenant(asked, model.tenant_header, request.values)
        if log is not None:
            log.id_in_body(asked.id)
        answers = await version.frontend.infer(
            asked.rows, asked.timeout, tenant=asked.tenant, exact=asked.exact
        )
        if log is not None:
            log.answered(model.name, model.version, answers.sources)
        return answers

    # Others

    async def _v1_models(self, request: Request) -> Response:
        return json_response({"models": self._models.names})

    async def _v1_model(self, request: Request) -> Response:
        version = self._models.find(request.model, request.version)
        ready = version.frontend.ready
        return json_response(status_of(version.model, ready), 200 if ready else 503)

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
                quarantined_instances=tuple(only.frontend.quarantined) or None,
            )
        return json_response(about)

    async def _model_metadata(self, request: Request) -> Response:
        found = self._models.find(request.model, request.version)
        return json_response(found.metadata(self._models.versions(found.model.name)))

    async def _model_ready(self, request: Request) -> Response:
        try:
            version = self._models.find(request.model, request.version)
        except UnavailableError as error:
            return _readiness({"name": request.model}, str(error))
        return _readiness({"name": request.model}, version.why_unready)

    async def _own_metrics(self, request: Request) -> Response:
        return metrics_response(request, self._metrics.registry)

    # The model-repository extension (Triton's docs/protocol/extension_model_repository.md)

    async def _index(self, request: Request) -> Response:
        asked = await _small(request, _INDEX)
        return json_response(
            [each for each in self._models.index() if each.state == "READY" or not asked.ready]
        )

    async def _load(self, request: Request) -> Response:
        await self._models.load(request.model, (await _small(request, _LOAD)).parameters)
        return json_response({})

    async def _unload(self, request: Request) -> Response:
        await self._models.unload(request.model)
        return json_response({})


async def _small(request: Request, decoder: msgspec.json.Decoder[Any]) -> Any:
    """The content of a request without tensors."""
    body = await request.content()
    if len(body) > JSON_OBJECT:
        raise TooLargeError(
            f"the request has {len(body)} bytes; without a tensor it has at most {JSON_OBJECT}"
        )
    return read_json(decoder, memoryview(body or b"{}"), "the request")


def _path_of(target: str) -> str:
    """The path of a request's target, which is a path (with a query) or a whole URL."""
    if target.startswith("/"):
        return unquote(target.partition("?")[0])
    try:
        return unquote(urlsplit(target).path)
    except ValueError as error:
        raise InvalidRequestError(f"the request's target is not a URL: {error}") from error


def _refuse_pages(request: Request) -> None:
    """Raises ForbiddenError for a request from a web page: any site's page can reach this server
    from a browser in its network."""
    if "origin" in request.headers:
        raise ForbiddenError(
            "web pages load and unload no models here; a request of your own has no header Origin"
        )


def _readiness(about: Mapping[str, Any], trouble: str) -> Response:
    if not trouble:
        return json_response({**about, "ready": True})
    return json_response({**about, "ready": False, "error": trouble}, 503)
