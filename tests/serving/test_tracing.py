"""Spans say where the time of a sampled request went, and are part of the client's trace."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from histories import check_nothing_is_left, observed_history
from parity_models import PolicyChoice, ServeOptions, Server, open_bundle
from parity_models.serving.tracing import QuerySpans, Tracing
from served import infer_message, queries
from triton_requests import grpc_infer

pytestmark = pytest.mark.slow

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"


class Spans:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def ended(self) -> dict[str, list[Any]]:
        """Those that have ended, by their first word."""
        found: dict[str, list[Any]] = {}  # their types say that all may be None
        for span in self.exporter.get_finished_spans():
            found.setdefault(span.name.partition(" ")[0], []).append(span)
        return found


async def test_a_request_s_spans_are_beneath_the_client_s(bundle: Path) -> None:
    spans = Spans()
    policy = PolicyChoice("parity", {})
    options = ServeOptions(policy=policy, instances=1, port=0, grpc_port=0)
    async with Server(open_bundle(bundle), options, Tracing(spans.provider)) as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            path = "/v2/models/%6dodel/infer"  # nobody makes names of spans
            for parent in (UNSAMPLED, SAMPLED):
                message = infer_message(queries(4))
                answer = await client.post(path, json=message, headers={"traceparent": parent})
                assert answer.is_success, answer.text
        assert server.grpc_url is not None
        address, traced = server.grpc_url.removeprefix("grpc://"), {"traceparent": SAMPLED}
        await asyncio.to_thread(grpc_infer, address, 1, headers=traced)
    found = spans.ended()
    request, called = sorted(found["infer"], key=lambda span: span.start_time)
    assert (request.name, called.name) == ("infer model", "infer model")
    assert (request.context.trace_id, request.parent.span_id) == (int(TRACE, 16), int(PARENT, 16))
    assert called.context.trace_id == request.context.trace_id
    assert dict(request.attributes)["parm.sources"].split(",")
    assert of_version(request) == of_version(called) == ("model", "1")
    within = {
        name: below
        for name, spans in found.items()
        if (below := [span for span in spans if span.parent == request.context])
    }
    assert {span.attributes["parm.role"] for span in within["run"]} == {"deployed"}
    assert len(within["run"]) == 4
    for span in within["run"]:
        assert of_version(span) == ("model", "1")
        assert request.start_time <= span.start_time <= span.end_time
    if "stand-in" in within:  # it is there if there was an instance for it in time
        assert {span.attributes["parm.role"] for span in within["stand-in"]} == {"parity-0"}


def of_version(span: Any) -> tuple[str, str]:
    return span.attributes["parm.model"], span.attributes["parm.version"]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_nothing_is_remembered_of_any_history(seed: int) -> None:
    tracer = TracerProvider().get_tracer("test")
    world, k = observed_history(seed, QuerySpans(tracer, {}, {}))
    check_nothing_is_left(world, k)
    assert isinstance(world.observer, QuerySpans)
    assert not world.observer.units
    assert not world.observer.members
