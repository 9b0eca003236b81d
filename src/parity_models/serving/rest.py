"""The Open Inference Protocol over HTTP: an ASGI application over a frontend.

Every error is a JSON object with an `error`, and the status of its class in errors.py.
"""

import asyncio
import logging
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from parity_models import __version__
from parity_models.serving.errors import (
    EncodingError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    TooLargeError,
)
from parity_models.serving.frontend import Frontend
from parity_models.serving.metrics import Metrics
from parity_models.serving.rest_codec import HEADER_LENGTH, decode_request, encode_response
from parity_models.serving.served_model import PLATFORM, VERSION, ServedModel
from parity_models.serving.tenancy import with_tenant

_log = logging.getLogger(__name__)

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""How zlib is told which of HTTP's content encodings it reads."""


def rest_app(frontend: Frontend, model: ServedModel, metrics: Metrics, max_body: int) -> Starlette:
    """The ASGI application; request bodies hold up to `max_body` bytes."""
    rest = _Rest(frontend, model, metrics, max_body)
    path, version = "/v2/models/{name}", "/versions/{version}"
    app = Starlette(
        routes=[
            Route(f"{path}/infer", rest.infer, methods=["POST"]),
            Route(f"{path}{version}/infer", rest.infer, methods=["POST"]),
            Route("/v2/health/live", rest.live),
            Route("/v2/health/ready", rest.ready),
            Route("/v2", rest.server_metadata),
            Route("/v2/repository/index", rest.repository_index, methods=["POST"]),
            Route(path, rest.model_metadata),
            Route(f"{path}{version}", rest.model_metadata),
            Route(f"{path}/ready", rest.model_ready),
            Route(f"{path}{version}/ready", rest.model_ready),
            Route("/metrics", rest.metrics),
        ],
        exception_handlers={
            RequestError: _refused,
            HTTPException: _http_error,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False
    return app


class _Rest:
    def __init__(
        self, frontend: Frontend, model: ServedModel, metrics: Metrics, max_body: int
    ) -> None:
        self._frontend = frontend
        self._model = model
        self._metrics = metrics
        self._max_body = max_body

    async def infer(self, request: Request) -> Response:
        status = 500
        try:
            response = await self._infer(request)
            status = response.status_code
        except RequestError as error:
            status = error.status
            raise
        finally:
            self._metrics.requests.labels(status).inc()
        return response

    async def _infer(self, request: Request) -> Response:
        self._check_model(request)
        body = await self._body(request)
        asked = decode_request(body, request.headers.get(HEADER_LENGTH), self._model)
        asked = with_tenant(asked, self._model.tenant_header, request.headers.getlist)
        answers = await self._frontend.infer(
            asked.rows, asked.timeout, tenant=asked.tenant, exact=asked.exact
        )
        content, header_length = encode_response(
            self._model, asked, answers.outputs, answers.sources
        )
        if header_length is None:
            return Response(content, media_type="application/json")
        return Response(
            content,
            headers={HEADER_LENGTH: str(header_length)},
            media_type="application/octet-stream",
        )

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        return self._readiness({})

    async def server_metadata(self, request: Request) -> Response:
        extensions = ["binary_tensor_data"]
        return _json(
            {
                "name": "parity-models",
                "version": __version__,
                "extensions": extensions,
                **self._model.identity,
            }
        )

    async def repository_index(self, request: Request) -> Response:
        state = "READY" if self._frontend.ready else "UNAVAILABLE"
        return _json([{"name": self._model.name, "version": VERSION, "state": state}])

    async def model_metadata(self, request: Request) -> Response:
        self._check_model(request)
        model = self._model
        inputs, outputs = (
            [{"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.shape]}]
            for spec in (model.input, model.output)
        )
        return _json(
            {
                "name": model.name,
                "versions": [VERSION],
                "platform": PLATFORM,
                "inputs": inputs,
                "outputs": outputs,
                **model.identity,
            }
        )

    async def model_ready(self, request: Request) -> Response:
        self._check_model(request)
        return self._readiness({"name": self._model.name})

    async def metrics(self, request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._metrics.registry), headers={"content-type": media_type})

    def _check_model(self, request: Request) -> None:
        path = request.path_params
        self._model.check_model(path["name"], path.get("version"))

    def _readiness(self, about: Mapping[str, Any]) -> Response:
        if self._frontend.ready:
            return _json({**about, "ready": True})
        error = "no instance of the deployed model takes queries now"
        return _json({**about, "ready": False, "error": error}, 503)

    async def _body(self, request: Request) -> bytes:
        encoding = request.headers.get("content-encoding", "identity").lower()
        if encoding != "identity" and encoding not in _WINDOW_BITS:
            raise EncodingError(
                f"content encoding {encoding[:40]!r} is not read here; send gzip, deflate or none"
            )
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body:
            raise self._too_large()
        chunks = []
        size = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size > self._max_body:
                    raise self._too_large()
                chunks.append(chunk)
        except ClientDisconnect as error:
            raise InvalidRequestError("the client went away before the body was whole") from error
        body = b"".join(chunks)
        if encoding == "identity":
            return body
        return await asyncio.to_thread(self._decompress, body, encoding)

    def _decompress(self, body: bytes, encoding: str) -> bytes:
        decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
        try:
            plain = decompressor.decompress(body, self._max_body)
        except zlib.error as error:
            raise InvalidRequestError(f"the body is not in {encoding} encoding: {error}") from error
        if decompressor.unconsumed_tail:
            raise self._too_large()
        if not decompressor.eof or decompressor.unused_data:
            raise InvalidRequestError(f"the body is not one whole stream in {encoding} encoding")
        return plain

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"the body is larger than the {self._max_body} bytes this server takes at once; send "
            "fewer rows at once"
        )


def _json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    later = {"retry-after": "1"} if isinstance(error, OverloadedError) else None
    return _json({"error": str(error)}, error.status, later)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        text = f"nothing is at {path}; the Open Inference Protocol's paths begin with /v2"
    elif error.status_code == 405:
        text = f"{path} does not take the method {request.method}"
    else:
        text = error.detail
    return _json({"error": text}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _json({"error": "the server failed to handle the request; its log says why"}, 500)
