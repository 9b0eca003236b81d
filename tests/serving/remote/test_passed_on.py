"""What upstreams are told of the requests that a unit is for: their ids, and their trace."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import fake_upstream as fake
from fake_upstream import FakeUpstream
from linear_bundles import FEATURES, linear_bundle
from parity_models.codes import CodeSpec
from parity_models.models.bundle import Bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.options import EngineChoice
from parity_models.serving.request_log import MAX_ID, RequestLog, headers_for
from parity_models.serving.server import ServeOptions, Server
from upstream_engines import WEIGHTS

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
ROW = [0.5] * FEATURES


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return linear_bundle(tmp_path, WEIGHTS, [WEIGHTS], CodeSpec("sum", "subtraction", 2))


@asynccontextmanager
async def in_front(
    bundle: Bundle, policy: str, traces: TracerProvider | None = None, **urls: str
) -> AsyncIterator[httpx.AsyncClient]:
    engine = EngineChoice("remote", dict(urls))
    options = ServeOptions(policy=PolicyChoice(policy), engine=engine, port=0)
    async with (
        Server(bundle, options, traces) as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as client,
    ):
        yield client


async def ask(client: httpx.AsyncClient, **headers: str) -> None:
    tensor = {"name": "input", "shape": [1, FEATURES], "datatype": "FP32", "data": ROW}
    answer = await client.post(
        "/v2/models/model/infer", json={"inputs": [tensor]}, headers=dict(headers)
    )
    assert answer.is_success, answer.text


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_an_upstream_is_told_the_request_s_id_and_the_client_s_trace_as_they_came(
    bundle: Bundle, scheme: str
) -> None:
    async with (
        FakeUpstream(scheme, WEIGHTS) as upstream,
        in_front(bundle, "none", deployed=f"{upstream.url}/model") as client,
    ):
        state = {"tracestate": "vendor=x"}
        await ask(client, **{"x-request-id": "mine", "traceparent": SAMPLED} | state)
        heard = upstream.heard[-1]
        assert heard["x-request-id"] == "mine"
        assert (heard["traceparent"], heard["tracestate"]) == (SAMPLED, "vendor=x")
        await ask(client, traceparent="00-nonsense")
        assert "traceparent" not in upstream.heard[-1]
        assert upstream.heard[-1]["x-request-id"] != "mine"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_with_spans_what_an_upstream_does_is_beneath_the_run(
    bundle: Bundle, scheme: str
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with (
        FakeUpstream(scheme, WEIGHTS) as upstream,
        in_front(bundle, "none", provider, deployed=f"{upstream.url}/model") as client,
    ):
        await ask(client, traceparent=SAMPLED)
        version, trace, parent, flags = upstream.heard[-1]["traceparent"].split("-")
    spans: list[Any] = list(exporter.get_finished_spans())  # their types say that all may be None
    (run,) = (span for span in spans if span.name == "run")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert int(parent, 16) == run.context.span_id


async def test_a_parity_query_is_for_the_requests_of_all_its_group(bundle: Bundle) -> None:
    async with (
        FakeUpstream("http", WEIGHTS) as model,
        FakeUpstream("http", WEIGHTS) as parity,
        in_front(
            bundle,
            "parity",
            deployed=f"{model.url}/model?concurrency=2",
            parity=f"{parity.url}/model",
        ) as client,
    ):
        model.mode = fake.HELD
        asking = [asyncio.create_task(ask(client, **{"x-request-id": each})) for each in "ab"]
        while not any("x-request-id" in each for each in parity.heard):
            await asyncio.sleep(0.01)
        model.release.set()
        await asyncio.gather(*asking)
        (told,) = (each["x-request-id"] for each in parity.heard if "x-request-id" in each)
        assert sorted(told.split(",")) == ["a", "b"]


def test_ids_are_told_as_far_as_there_is_room_and_of_traces_the_first() -> None:
    logs = [RequestLog("GET", "/", letter * 60) for letter in "abc"]
    logs += [RequestLog("GET", "/", "d", SAMPLED), RequestLog("GET", "/", "e", SAMPLED[:-1] + "0")]
    told = headers_for([*logs, logs[0]])
    assert told == {
        "x-request-id": ",".join(("a" * 60, "b" * 60, "d", "e")),
        "traceparent": SAMPLED,
    }
    assert len(told["x-request-id"]) <= MAX_ID
    assert headers_for([]) == {}
