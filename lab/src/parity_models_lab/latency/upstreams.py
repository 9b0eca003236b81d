"""A fleet to serve over: servers of the Open Inference Protocol with emulated accelerators.

They are in one process, each on a port of its own, and run one unit at a time, which takes as long
as a fault plan says and holds no core meanwhile. Server i suffers what worker i of the local
engine would.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from aiohttp import web
from numpy.typing import NDArray

from parity_models.errors import ServingError, UserError
from parity_models.faults import FaultPlan, WorkerFaults
from parity_models.load.child import Child, child, commands, tell
from parity_models.load.served import BEGIN_FAULTS
from parity_models.models.bundle import open_bundle
from parity_models.models.onnx_model import OnnxModel
from parity_models.scheduling import DEPLOYED, Source
from parity_models.serving.errors import RequestError
from parity_models.serving.plan import model_files
from parity_models.serving.remote.fleet import Fleet
from parity_models.serving.remote.upstream import Upstream
from parity_models.serving.rest.codec import decode_request, encode_response
from parity_models.serving.rest.protocol import HEADER_LENGTH
from parity_models.serving.served_model import VERSION, ServedModel

MAX_ROWS = 64
MAX_BODY = 64 * 2**20


class _Spec(msgspec.Struct):
    bundle: str
    allow_code: frozenset[str]
    roles: list[frozenset[str]]
    faults: FaultPlan | None


@asynccontextmanager
async def emulated_fleet(
    bundle: Path,
    roles: Sequence[frozenset[str]],
    faults: FaultPlan | None,
    allow_code: frozenset[str] = frozenset(),
) -> AsyncIterator[tuple[Fleet, Child]]:
    """A server for each of `roles`, and their process, which BEGIN_FAULTS can be told.

    Raises UserError for faults that it cannot emulate: kills, and times spent computing.
    """
    if faults is not None and (faults.kills or faults.random_kills or faults.computing):
        raise UserError("emulated upstreams are neither killed nor busy: leave these faults out")
    spec = msgspec.json.encode(_Spec(str(bundle), allow_code, list(roles), faults)).decode()
    async with child((sys.executable, "-m", __name__, spec)) as process:
        if not process.message.startswith("["):
            raise await process.failure(ServingError)
        yield Fleet(msgspec.json.decode(process.message, type=tuple[Upstream, ...])), process


class _Accelerator:
    """Runs one unit at a time; `faults` are those since a time of time.monotonic()."""

    def __init__(self, models: Mapping[str, OnnxModel]) -> None:
        self._models = models
        self._free = asyncio.Lock()
        self.faults: tuple[float, WorkerFaults] | None = None

    async def run(self, role: str, rows: NDArray[Any]) -> NDArray[Any]:
        async with self._free:
            began = time.monotonic()
            outputs = self._models[role](rows)
            if self.faults is not None:
                start, faults = self.faults
                done = start + faults.release(began - start, time.monotonic() - start, role)
                await asyncio.sleep(done - time.monotonic())
            return outputs


class _Server:
    """The protocol over REST, in front of an accelerator; `models` by name, with their work."""

    def __init__(
        self, accelerator: _Accelerator, models: Mapping[str, tuple[str, ServedModel]]
    ) -> None:
        self._accelerator = accelerator
        self._models = models

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY)
        model = "/v2/models/{name}"
        app.router.add_get("/v2", self._about)
        app.router.add_get(model, self._metadata)
        app.router.add_get(f"{model}/ready", self._ready)
        app.router.add_post(f"{model}/infer", self._infer)
        return app

    async def _about(self, request: web.Request) -> web.Response:
        return web.json_response({"name": "emulated", "extensions": ["binary_tensor_data"]})

    async def _ready(self, request: web.Request) -> web.Response:
        self._find(request)
        return web.Response()

    async def _metadata(self, request: web.Request) -> web.Response:
        _, model = self._find(request)
        input, output = (
            [{"name": spec.name, "datatype": spec.datatype, "shape": (-1, *spec.shape)}]
            for spec in (model.signature.input, model.signature.output)
        )
        about = {"name": model.name, "versions": [VERSION], "inputs": input, "outputs": output}
        return web.json_response(about)

    async def _infer(self, request: web.Request) -> web.Response:
        role, model = self._find(request)
        try:
            asked = decode_request(await request.read(), request.headers.get(HEADER_LENGTH), model)
        except RequestError as error:
            return web.json_response({"error": str(error)}, status=error.status)
        outputs = await self._accelerator.run(role, asked.rows)
        sources = [Source.MODEL] * len(outputs)
        content, length = encode_response(model, asked, outputs, sources)
        return web.Response(
            body=content, headers={} if length is None else {HEADER_LENGTH: str(length)}
        )

    def _find(self, request: web.Request) -> tuple[str, ServedModel]:
        try:
            return self._models[request.match_info["name"]]
        except KeyError:
            raise web.HTTPNotFound from None


async def _serve(spec: _Spec) -> None:
    bundle = open_bundle(spec.bundle, spec.allow_code)
    name = bundle.manifest.name
    models = {role: OnnxModel(bundle.content(model)) for role, model in model_files(bundle).items()}
    served = {
        role: ServedModel(name if role == DEPLOYED else f"{name}-{role}", model.signature, MAX_ROWS)
        for role, model in models.items()
    }
    accelerators = [_Accelerator(models) for _ in spec.roles]
    upstreams = []
    runners = []
    for accelerator, roles in zip(accelerators, spec.roles, strict=True):
        server = _Server(accelerator, {served[role].name: (role, served[role]) for role in roles})
        runner = web.AppRunner(server.app(), access_log=None)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = "http://{}:{}".format(*runner.addresses[0])
        upstreams.append(Upstream(url, {role: served[role].name for role in roles}))
    tell(json.dumps(msgspec.to_builtins(upstreams)))
    async for line in await commands():
        if line == BEGIN_FAULTS and spec.faults is not None:
            now = time.monotonic()
            for number, accelerator in enumerate(accelerators):
                accelerator.faults = (now, WorkerFaults(spec.faults, number))
    for runner in runners:
        await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(_serve(msgspec.json.decode(sys.argv[1], type=_Spec)))
