"""A server of the Open Inference Protocol, REST or gRPC, and V1, that misbehaves on demand."""

import asyncio
import json
import ssl
from collections.abc import Iterable
from functools import partial
from math import prod
from typing import Any, Self

import grpc
import numpy as np
from aiohttp import web
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
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


class FakeUpstream:
    """Serves rows @ weights as model "model", from "input" (n, *) to "output" (n, *).

    `heard` are the headers, or the metadata, of the units that it was asked, in lower case.

    `mode` says how it answers from now on; health checks are only bad when it is AWAY or
    DENIED, as if it asked for a token. When it is
    PICKY, rows with a value above 1 are the client's mistake: none that it is checked with is one.
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
        self.busy: int | grpc.StatusCode = 503
        self.retry_after: str | float | None = None
        self.asked = 0
        self.abandoned = 0
        self.heard: list[dict[str, str]] = []
        self.release = asyncio.Event()
        self._closing = asyncio.Event()
        self._scheme = scheme
        self._weights = weights
        self._shape = (-1, *weights.shape[:1])
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
                web.post("/v1/models/model:predict", self._predict),
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

    def _answer(self, data: bytes) -> NDArray[np.float32]:
        rows = np.frombuffer(data, np.float32).reshape(-1, prod(self._weights.shape[:1]))
        factor = 3 if self.mode == OTHER else 1
        return factor * (rows @ self._weights)

    def _dislikes(self, data: bytes) -> bool:
        return self.mode == PICKY and bool((np.frombuffer(data, np.float32) > 1).any())

    async def _asked(self, headers: Iterable[tuple[str, Any]]) -> None:
        """A unit has come: it waits if that is how the server misbehaves."""
        self.asked += 1
        self.heard.append({name.lower(): str(value) for name, value in headers})
        if self.mode == HUNG:
            await self._closing.wait()
        if self.mode == HELD:
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.abandoned += 1
                raise

    # REST

    async def _about(self, request: web.Request) -> web.Response:
        extensions = ["binary_tensor_data"] if self._binary else []
        return web.json_response({"name": self._software, "extensions": extensions})

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(status={AWAY: 503, DENIED: 401}.get(self.mode, 200))

    async def _metadata(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "name": "model",
                "versions": ["1"],
                "inputs": [{"name": "input", "datatype": "FP32", "shape": self._shape}],
                "outputs": [
                    {"name": "output", "datatype": "FP32", "shape": (-1, *self._weights.shape[1:])}
                ],
            }
        )

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response({"name": "model", "ready": self.mode != AWAY})

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if not self._binary:
            return await self._answer_json(request, json.loads(body)["inputs"][0]["data"])
        length = int(request.headers["Inference-Header-Content-Length"])
        if (wrong := await self._misbehave(request, body[length:])) is not None:
            return wrong
        outputs = self._answer(body[length:])
        output = {"name": "output", "datatype": "FP32", "shape": outputs.shape}
        header = json.dumps({"outputs": [output]}).encode()
        data = outputs.tobytes()
        return web.Response(
            body=header + (data[:-1] if self.mode == SHORT else data),
            headers={"Inference-Header-Content-Length": str(len(header))},
        )

    async def _predict(self, request: web.Request) -> web.StreamResponse:
        return await self._answer_json(request, json.loads(await request.read())["instances"])

    async def _answer_json(self, request: web.Request, rows: Any) -> web.StreamResponse:
        data = np.array(rows, np.float32).tobytes()
        if (wrong := await self._misbehave(request, data)) is not None:
            return wrong
        outputs = self._answer(data)
        answers = outputs.tolist()
        if self.mode == SHORT:
            answers.pop()
        if self.mode == NULL:
            answers[0][0] = None
        if request.path.startswith("/v1"):
            return web.json_response({"predictions": answers})
        output = {"name": "output", "datatype": "FP32", "shape": outputs.shape, "data": answers}
        return web.json_response({"outputs": [output]})

    async def _misbehave(self, request: web.Request, data: bytes) -> web.StreamResponse | None:
        """The answer of a server that misbehaves, or dislikes this unit."""
        held = self.mode == HELD
        await self._asked(request.headers.items())
        if held:
            return None
        if self.mode == ERROR:
            return web.json_response({"error": "not today"}, status=500)
        if self.mode == BUSY:
            headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
            assert isinstance(self.busy, int)
            return web.json_response({"error": "too much"}, status=self.busy, headers=headers)
        if self.mode == NOISE:
            return web.Response(body=bytes(range(256)) * 20)
        if self.mode == HUGE:
            return web.Response(body=bytes(10 * 2**20))
        if self.mode == CUT:
            cut = web.StreamResponse(headers={"Content-Length": "100"})
            await cut.prepare(request)
            await cut.write(bytes(10))
            assert request.transport is not None
            request.transport.close()
            return cut
        return web.json_response({"error": "above 1"}, status=400) if self._dislikes(data) else None

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
        about = ModelMetadataResponse(name="model", versions=["1"])
        about.inputs.add(name="input", datatype="FP32", shape=self._shape)
        about.outputs.add(name="output", datatype="FP32", shape=(-1, *self._weights.shape[1:]))
        return about.SerializeToString()

    async def _infer_grpc(self, request: bytes, context: Any) -> Any:
        held = self.mode == HELD
        await self._asked(context.invocation_metadata())
        if self.mode == ERROR and not held:
            await context.abort(grpc.StatusCode.INTERNAL, "not today")
        if self.mode == BUSY and not held:
            details = _retry_info(self.retry_after)
            await context.abort(self.busy, "too much", (("grpc-status-details-bin", details),))
        if self.mode == NOISE:
            return bytes(range(255, 0, -1))
        if self.mode == HUGE:
            return bytes(10 * 2**20)
        data = ModelInferRequest.FromString(request).raw_input_contents[0]
        if self._dislikes(data):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "above 1")
        outputs = self._answer(data)
        response = ModelInferResponse(model_name="model")
        response.outputs.add(name="output", datatype="FP32", shape=outputs.shape)
        data = outputs.tobytes()
        response.raw_output_contents.append(data[:-1] if self.mode == SHORT else data)
        return response.SerializeToString()


def _retry_info(seconds: Any) -> bytes:
    """A google.rpc.Status with a RetryInfo, or without one for None."""
    if seconds is None:
        return b""
    delay = Duration()
    delay.FromNanoseconds(round(1e9 * float(seconds)))
    info = b"\x0a" + bytes([delay.ByteSize()]) + delay.SerializeToString()
    detail = AnyMessage(type_url="type.googleapis.com/google.rpc.RetryInfo", value=info)
    return b"\x08\x08\x1a" + bytes([detail.ByteSize()]) + detail.SerializeToString()


def server_context(certificate: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context
