"""A server of the Open Inference Protocol, REST or gRPC, and V1, that misbehaves on demand."""

import asyncio
import json
import ssl
from collections.abc import Iterable
from functools import partial
from typing import Any, Self

import grpc
import numpy as np
from aiohttp import web
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from numpy.typing import NDArray

from parity_models.serving.grpc.protos import (
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerMetadataResponse,
)

WELL = "well"
NOISE = "noise"
SHORT = "short"
OTHER = "other"
ERROR = "error"
HUNG = "hung"
AWAY = "away"
DENIED = "denied"
HUGE = "huge"
CUT = "cut"
PICKY = "picky"
NULL = "null"
BUSY = "busy"
HELD = "held"

LENGTH = "Inference-Header-Content-Length"
CODES = {400: grpc.StatusCode.INVALID_ARGUMENT, 500: grpc.StatusCode.INTERNAL}
"""The codes of gRPC for statuses of HTTP."""


class RefusedError(Exception):
    """The refusal of a unit, with a status of HTTP or a code of gRPC."""

    def __init__(self, status: Any, text: str) -> None:
        self.status, self.text = status, text


class FakeUpstream:
    """Serves rows @ weights as model "model", from "input" (n, *) to "output" (n, *).

    `heard` are the headers, or the metadata, of the units that it was asked, in lower case.

    Over V2 and gRPC, answers name the `version` of the model, if there is one.
    `mode` says how it answers from now on; health checks are only bad when it is AWAY or DENIED, as
    if it asked for a token. When it is PICKY, rows with a value above 1 are the client's mistake:
    none that it is checked with is one.
    Over REST it reads and writes JSON data unless it is `binary`, and says that it is `software`;
    when it is NULL, a number there is none. When it is HELD, units wait for `release`; `abandoned`
    counts those whose clients did not. When it is BUSY, units are turned away: as `busy` says, with
    an HTTP status or a gRPC one, to be tried again after `retry_after` if there is one. With `tls`,
    https or grpcs: the context, or the key and the certificate.
    """

    def __init__(
        self,
        scheme: str,
        weights: NDArray[np.float32],
        *,
        binary: bool = True,
        software: str | None = None,
        tls: Any = None,
    ) -> None:
        self.mode = WELL
        self.version: str | None = None
        self.busy: int | grpc.StatusCode = 503
        self.retry_after: str | float | None = None
        self.asked = 0
        self.abandoned = 0
        self.heard: list[dict[str, str]] = []
        self.release = asyncio.Event()
        self._closing = asyncio.Event()
        self._scheme = scheme
        self._weights = weights
        self._binary = binary
        self._software = software
        self._tls = tls

    async def __aenter__(self) -> Self:
        port = await (self._serve_http() if self._scheme.startswith("http") else self._serve_grpc())
        self.url = f"{self._scheme}://127.0.0.1:{port}"
        return self

    async def _serve_http(self) -> int:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v2", self._about),
                web.get("/v2/models/model", self._metadata),
                web.get("/v2/models/model/ready", self._ready),
                web.post("/v2/models/model/infer", self._infer),
                web.get("/v1/models/model", self._status),
                web.post("/v1/models/model:predict", self._infer),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self._stop = runner.cleanup
        return int(runner.addresses[0][1])

    async def _serve_grpc(self) -> int:
        server = grpc.aio.server()
        methods = {
            "ServerMetadata": self._about_grpc,
            "ModelReady": self._ready_grpc,
            "ModelMetadata": self._metadata_grpc,
            "ModelInfer": self._infer_grpc,
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()
        }
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)]
        )
        if self._tls is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            credentials = grpc.ssl_server_credentials([self._tls])
            port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        self._stop = partial(server.stop, None)
        return port

    async def __aexit__(self, *about: object) -> None:
        self._closing.set()
        await self._stop()

    async def _outputs(
        self, headers: Iterable[tuple[str, Any]], data: bytes
    ) -> NDArray[np.float32] | bytes:
        """Return a unit's outputs, or bytes that are none. Raises RefusedError."""
        mode = self.mode
        self.asked += 1
        self.heard.append({name.lower(): str(value) for name, value in headers})
        if mode == HUNG:
            await self._closing.wait()
        elif mode == HELD:
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.abandoned += 1
                raise
        elif mode == ERROR:
            raise RefusedError(500, "not today")
        elif mode == BUSY:
            raise RefusedError(self.busy, "too much")
        elif mode == NOISE:
            return bytes(range(256)) * 20
        elif mode == HUGE:
            return bytes(10 * 2**20)
        rows = np.frombuffer(data, np.float32)
        if mode == PICKY and (rows > 1).any():
            raise RefusedError(400, "above 1")
        factor = 3 if self.mode == OTHER else 1
        return factor * (rows.reshape(-1, len(self._weights)) @ self._weights)

    # REST

    async def _about(self, request: web.Request) -> web.Response:
        extensions = ["binary_tensor_data"] if self._binary else []
        return web.json_response({"name": self._software, "extensions": extensions})

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(status={AWAY: 503, DENIED: 401}.get(self.mode, 200))

    async def _metadata(self, request: web.Request) -> web.Response:
        return web.json_response({"name": "model", "inputs": [], "outputs": []})

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response({"name": "model", "ready": self.mode != AWAY})

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        """Answer a unit over V1, or over V2 with binary data or JSON."""
        body, is_v1 = await request.read(), request.path.startswith("/v1")
        binary = self._binary and not is_v1
        if binary:
            data = body[int(request.headers[LENGTH]) :]
        else:
            message = json.loads(body)
            rows = message["instances"] if is_v1 else message["inputs"][0]["data"]
            data = np.array(rows, np.float32).tobytes()
        try:
            outputs = await self._outputs(request.headers.items(), data)
        except RefusedError as refusal:
            headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
            error = {"error": refusal.text}
            return web.json_response(error, status=refusal.status, headers=headers)
        if isinstance(outputs, bytes):
            return web.Response(body=outputs)
        if self.mode == CUT:
            cut = web.StreamResponse(headers={"Content-Length": "100"})
            await cut.prepare(request)
            await cut.write(bytes(10))
            assert request.transport is not None
            request.transport.close()
            return cut
        output = {"name": "output", "datatype": "FP32", "shape": outputs.shape}
        if binary:
            named = {"model_version": self.version, "outputs": [output]}
            header = json.dumps(named).encode()
            length = {LENGTH: str(len(header))}
            return web.Response(body=header + self._bytes(outputs), headers=length)
        values = outputs.tolist()
        if self.mode == SHORT:
            values.pop()
        if self.mode == NULL:
            values[0][0] = None
        answer = {"predictions": values} if is_v1 else {"outputs": [{**output, "data": values}]}
        return web.json_response(answer)

    def _bytes(self, outputs: NDArray[np.float32]) -> bytes:
        data = outputs.tobytes()
        return data[:-1] if self.mode == SHORT else data

    # gRPC

    async def _ready_grpc(self, request: bytes, context: Any) -> Any:
        name = ModelReadyRequest.FromString(request).name
        if name != "model":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model {name}")
        if self.mode == DENIED:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is needed")
        return ModelReadyResponse(ready=self.mode != AWAY).SerializeToString()

    async def _about_grpc(self, request: bytes, context: Any) -> Any:
        if self._software is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")
        return ServerMetadataResponse(name=self._software).SerializeToString()

    async def _metadata_grpc(self, request: bytes, context: Any) -> Any:
        return ModelMetadataResponse(name="model").SerializeToString()

    async def _infer_grpc(self, request: bytes, context: Any) -> Any:
        data = ModelInferRequest.FromString(request).raw_input_contents[0]
        try:
            outputs = await self._outputs(context.invocation_metadata(), data)
        except RefusedError as refusal:
            code = CODES.get(refusal.status, refusal.status)
            details = _retry_info(self.retry_after)
            await context.abort(code, refusal.text, (("grpc-status-details-bin", details),))
        if isinstance(outputs, bytes):
            return outputs
        response = ModelInferResponse(model_name="model", model_version=self.version)
        response.outputs.add(name="output", datatype="FP32", shape=outputs.shape)
        response.raw_output_contents.append(self._bytes(outputs))
        return response.SerializeToString()


def _retry_info(seconds: Any) -> Any:
    """A google.rpc.Status with a RetryInfo, or without one for None."""
    if seconds is None:
        return b""
    info, status = RetryInfo(), Status(code=8)
    info.retry_delay.FromNanoseconds(round(1e9 * float(seconds)))
    status.details.add().Pack(info)
    return status.SerializeToString()


def server_context(certificate: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context
