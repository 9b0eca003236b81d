"""Gated stand-ins behind the real Envoy: a late request is answered where the gate allows."""

import asyncio
import importlib
import subprocess
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import yaml
from aiohttp import web

import parity_models as pm
from parity_models.bundle.bundle import Bundle
from parity_models.trust.gate import confidences
from ports import free_ports
from served import INFER, gated_bundle, infer_message, metric, predictions, queries
from string_models import CLASSES, log_bundle, texts

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parent.parent.parent
ENVOY = ROOT / ".servers" / "envoy" / "envoy" / "_bin" / "envoy"
ISTIO = ROOT / ".servers" / "istio"
EXAMPLES = ROOT / "examples" / "proxies"
QUICK = ("--concurrency", "1", "--file-flush-interval-msec", "100")
PATIENCE = 120.0

ROWS = queries(40)
CONFIDENCE = confidences("scores", 2 * predictions(ROWS))
THRESHOLD = float(np.median(CONFIDENCE))
SURE, UNSURE = ROWS[CONFIDENCE > THRESHOLD], ROWS[CONFIDENCE < THRESHOLD]

Route = dict[str, Any]


class Model:
    """A model server, and a classifier, that answers at once, unless it is told to wait or fail."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.fails = False

    async def infer(self, request: web.Request) -> web.Response:
        body = await request.json()
        tensor = body["inputs"][0]
        rows = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        await self.may_answer.wait()
        output = {"name": "output", "datatype": "FP32", "shape": [len(rows), 10]}
        output["data"] = predictions(rows).ravel().tolist()
        return web.json_response({"model_name": "model", "outputs": [output]})

    async def classify(self, request: web.Request) -> web.Response:
        await self.may_answer.wait()
        if self.fails:
            return web.json_response({"error": "no"}, status=500)
        return web.json_response([{"label": "model's", "score": 1.0}])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its backup predicts twice as much, and may answer half of the queries."""
    return gated_bundle(tmp_path_factory.mktemp("gated"), THRESHOLD)


def configuration() -> dict[str, Any]:
    document = yaml.safe_load((EXAMPLES / "envoy.yaml").read_text())
    assert isinstance(document, dict)
    return document


def manager_of(document: dict[str, Any]) -> dict[str, Any]:
    (listener,) = document["static_resources"]["listeners"]
    manager: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def route_of(document: dict[str, Any]) -> Route:
    route: Route = manager_of(document)["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    return route


def envoy(document: dict[str, Any], folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    assert ENVOY.exists(), f"there is no Envoy at {ENVOY}; make servers installs it"
    file = folder / "envoy.json"
    file.write_bytes(msgspec.json.encode(document))
    with (folder / "envoy.log").open("wb") as log:
        return subprocess.Popen(
            [ENVOY, "-c", file, "--use-dynamic-base-id", *QUICK, *arguments], stdout=log, stderr=log
        )


@asynccontextmanager
async def proxied(
    bundle: Bundle | Path, tmp_path: Path, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Model, str]]:
    """A client of the proxy, the model behind it, and the URL of the stand-ins."""
    model, app = Model(), web.Application(client_max_size=2**24)
    app.router.add_post("/v2/models/model/infer", model.infer)
    app.router.add_post("/classify", model.classify)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with pm.serve(bundle, stand_in_only=True, instances=2, port=0, **options) as stand_ins:
        (front,) = free_ports(1)
        document = configuration()
        (listener,) = document["static_resources"]["listeners"]
        listener["address"]["socket_address"]["port_value"] = front
        endpoints = document["static_resources"]["clusters"][0]["load_assignment"]["endpoints"]
        ports = (runner.addresses[0][1], int(stand_ins.url.rpartition(":")[2]))
        for each, port in zip(endpoints, ports, strict=True):
            address = each["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
            address["port_value"] = port
        (log,) = manager_of(document)["access_log"]
        log["typed_config"]["path"] = str(tmp_path / "access.log")
        # However busy this machine is, a request that the model answers at once is not late.
        route = route_of(document)
        route["timeout"] = f"{PATIENCE}s"
        route["retry_policy"]["per_try_timeout"] = "5s"
        process = envoy(document, tmp_path)
        try:
            base_url = f"http://127.0.0.1:{front}"
            async with httpx.AsyncClient(base_url=base_url, timeout=PATIENCE) as client:
                async with asyncio.timeout(PATIENCE):
                    while True:
                        assert process.poll() is None, (tmp_path / "envoy.log").read_text()
                        with suppress(httpx.TransportError):
                            await client.get("/")
                            break
                        await asyncio.sleep(0.05)
                yield client, model, stand_ins.url
        finally:
            model.may_answer.set()
            process.kill()
            process.wait()
            await runner.cleanup()


async def ask(client: httpx.AsyncClient, rows: Any) -> tuple[int, Any]:
    response = await client.post(INFER, json=infer_message(rows))
    (output,) = response.json()["outputs"]
    return response.status_code, np.reshape(output["data"], output["shape"])


async def refusals(url: str) -> float:
    return await asyncio.to_thread(metric, f"{url}/metrics", "parm_stand_in_answers_refused_total")


async def refused(stand_ins: str, call: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
    """Make a call until the stand-in has refused it: its 503 is dropped, and the proxy waits on."""
    before, waiting = await refusals(stand_ins), asyncio.ensure_future(call)
    async with asyncio.timeout(PATIENCE):
        while await refusals(stand_ins) == before:
            await asyncio.sleep(0.05)
    assert not waiting.done()
    return waiting


async def test_the_stand_in_answers_what_is_late_and_sure(bundle: Bundle, tmp_path: Path) -> None:
    async with proxied(bundle, tmp_path) as (client, model, stand_ins):
        for rows in (SURE[:2], UNSURE[:2]):
            status, found = await ask(client, rows)
            assert status == 200
            np.testing.assert_allclose(found, predictions(rows), rtol=1e-3, atol=1e-5)
        model.may_answer.clear()
        status, found = await ask(client, SURE[:2])
        assert status == 200
        np.testing.assert_allclose(found, 2 * predictions(SURE[:2]), rtol=1e-3, atol=1e-5)
        waiting = await refused(stand_ins, ask(client, UNSURE[:2]))
        model.may_answer.set()
        status, found = await waiting
        assert status == 200
        np.testing.assert_allclose(found, predictions(UNSURE[:2]), rtol=1e-3, atol=1e-5)


async def test_a_classifier_that_is_late_or_fails_is_answered_by_its_stand_in(
    tmp_path: Path,
) -> None:
    """As for vLLM's semantic router, which asks Envoy."""
    bundle = log_bundle(tmp_path)
    async with proxied(bundle, tmp_path, agreement=0.9) as (client, model, stand_ins):

        async def ask(text: str) -> tuple[int, Any]:
            response = await client.post("/classify", json={"inputs": text})
            return response.status_code, response.json()

        models = 200, [{"label": "model's", "score": 1.0}]
        (sure,), unsure = texts(1, seed=4)[0], "well 7 well"
        assert await ask(sure) == await ask(unsure) == models
        model.may_answer.clear()
        status, scores = await ask(sure)
        assert (status, scores[0]["label"]) == (200, CLASSES[0])
        waiting = await refused(stand_ins, ask(unsure))
        model.may_answer.set()
        assert await waiting == models
        model.fails = True
        assert await ask(sure) == (200, scores)
        assert (await ask(unsure))[0] == 503


def merge(into: Any, patch: Any) -> Any:
    if not (isinstance(into, dict) and isinstance(patch, dict)):
        return patch
    return into | {key: merge(into.get(key), value) for key, value in patch.items()}


def documents(file: str) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all((EXAMPLES / file).read_text())


def test_envoy_takes_what_istio_would_merge(tmp_path: Path) -> None:
    """Envoy itself validates the route that results from Istio's patch."""
    patched = configuration()
    kept = {key: value for key, value in route_of(patched).items() if key in ("cluster", "timeout")}
    (patch,) = next(documents("istio.yaml"))["spec"]["configPatches"]
    assert (patch["applyTo"], patch["patch"]["operation"]) == ("HTTP_ROUTE", "MERGE")
    route = route_of(patched)
    route.clear()
    route.update(merge(kept, patch["patch"]["value"]["route"]))
    own = route_of(configuration())
    assert route == own, "the examples of Envoy and Istio differ"
    validated = envoy(patched, tmp_path, "--mode", "validate")
    assert validated.wait(PATIENCE) == 0, (tmp_path / "envoy.log").read_text()


def test_istio_takes_its_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validated by models made of Istio's CRDs, which drop fields that these do not have."""
    assert ISTIO.exists(), f"there are no models of Istio's objects at {ISTIO}; run make servers"
    monkeypatch.syspath_prepend(ISTIO)
    networking = importlib.import_module("cloudcoil.models.istio.networking")
    for document in documents("istio.yaml"):
        version = getattr(networking, document["apiVersion"].rpartition("/")[2])
        valid = getattr(version, document["kind"]).model_validate(document)
        assert valid.model_dump(mode="json", by_alias=True, exclude_unset=True) == document
