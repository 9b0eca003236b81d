"""gRPC clients can make the server hold a bounded amount; calls that they give up free theirs."""

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from grpc_served import READY, method, request, serving
from http_served import eventually
from parity_models.serving.errors import (
    AbandonedError,
    DeadlineError,
    OverloadedError,
    UnavailableError,
)
from parity_models.serving.grpc.protos import (
    ModelInferRequest,
    ModelInferResponse,
    ServerReadyRequest,
)

pytestmark = pytest.mark.usefixtures("transport")


def delay(error: grpc.aio.AioRpcError) -> float:
    """Return the delay of google.rpc.RetryInfo, in seconds, as clients read it."""
    status = rpc_status.from_call(error)
    assert status is not None
    assert (status.code, status.message) == (error.code().value[0], error.details())
    (detail,) = status.details
    info = RetryInfo()
    assert detail.Unpack(info)
    seconds: float = info.retry_delay.ToTimedelta().total_seconds()
    return seconds


async def refusal(
    call: Awaitable[object], text: str, code: StatusCode = StatusCode.RESOURCE_EXHAUSTED
) -> grpc.aio.AioRpcError:
    """Return the error that ends a call."""
    with pytest.raises(grpc.aio.AioRpcError, match=text) as error:
        await call
    assert error.value.code() is code
    return error.value


async def test_overload_is_resource_exhausted_and_says_when_to_come_back() -> None:
    async with serving() as (served, infer):
        served.frontend.error = OverloadedError("too much", retry_after=0.25)
        served.frontend.may.set()
        assert delay(await refusal(infer(request()), "too much")) == 0.25
        assert served.requests(503) == served.refused("admission") == 1
        for failure, code in (
            (AbandonedError("gone"), StatusCode.CANCELLED),
            (DeadlineError("no answer within 1 s"), StatusCode.DEADLINE_EXCEEDED),
            (UnavailableError("stopping"), StatusCode.UNAVAILABLE),
        ):
            served.frontend.error = failure
            error = await refusal(infer(request()), str(failure), code)
            assert rpc_status.from_call(error) is None


async def test_the_call_too_many_is_refused_and_health_is_still_told() -> None:
    async with serving(max_rpcs=2) as (served, infer):
        two = [asyncio.ensure_future(infer(request())) for _ in range(2)]
        await eventually(lambda: served.frontend.asked == 2)
        error = await refusal(infer(request()), r"at most 2 gRPC calls at a time \(max_rpcs\)")
        assert 1 <= delay(error) <= 2
        assert served.requests(503) == served.refused("max_rpcs") == 1
        async with served.channel() as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs name no method
            assert (await health.Check(health_pb2.HealthCheckRequest())).status
            assert await method(channel, READY)(ServerReadyRequest().SerializeToString())
        served.frontend.may.set()
        await asyncio.gather(*two)
        await infer(request())


@pytest.mark.parametrize("how", ["cancel", "deadline", "connection"])
async def test_cancelled_call_abandons_its_queries(how: str) -> None:
    async with serving() as (served, _), served.channel() as channel:
        call = method(channel)(request(), timeout=2 if how == "deadline" else None)
        waited = asyncio.ensure_future(call.code())
        await eventually(lambda: served.frontend.asked == 1)
        assert served.frontend.cancelled == 0
        if how == "cancel":
            call.cancel()
        elif how == "connection":
            await channel.close()
        await eventually(lambda: served.frontend.cancelled == 1)
        await eventually(lambda: served.requests(499) == 1)
        await waited


async def test_the_bytes_of_all_messages_have_a_budget() -> None:
    most = 8000
    async with serving(max_body=4000, max_in_flight=most) as (served, infer):
        first = asyncio.ensure_future(infer(request(100)))
        await eventually(lambda: served.frontend.asked == 1)
        assert served.budget.held >= 3 * 1600  # the message, the outputs, and the answer
        error = await refusal(infer(request(100)), f"exceed the {most}.*max_in_flight")
        assert served.refused("max_in_flight") == 1
        assert delay(error) > 0
        served.frontend.may.set()
        await first
        await eventually(lambda: served.budget.held == 0)
        await infer(request(100))


async def test_a_message_beyond_half_the_limit_of_bodies_is_refused_by_grpc() -> None:
    async with serving(max_body=4000) as (served, infer):
        await refusal(infer(request(1000)), r"larger than max \(.* vs\. 2000")
        assert served.frontend.asked == 0


async def test_typed_contents_are_limited_as_json_is() -> None:
    async with serving(max_json=2000) as (served, infer):
        message = ModelInferRequest(model_name="model")
        tensor = message.inputs.add(name="x", datatype="FP32", shape=(200, 4))
        tensor.contents.fp32_contents.extend(range(800))
        text = "typed contents have at most 2000; send raw_input_contents"
        await refusal(infer(message.SerializeToString()), text)
        assert served.frontend.asked == 0
        served.frontend.may.set()
        raw = ModelInferRequest.FromString(request(200))
        raw.id = "mine"
        raw.outputs.add(name="x")
        answer = ModelInferResponse.FromString(await infer(raw.SerializeToString()))
        assert (answer.id, answer.outputs[0].name, len(answer.raw_output_contents[0])) == (
            *("mine", "x"),
            3200,
        )


async def test_a_refused_message_is_freed_at_once() -> None:
    """gRPC keeps the error of a call in a cycle, with the frames of its traceback."""
    async with serving(max_json=2000) as (_, infer):
        message = ModelInferRequest(model_name="model")
        tensor = message.inputs.add(name="x", datatype="FP32", shape=(200_000, 4))
        tensor.contents.fp32_contents.extend([1.0] * 800_000)
        data = message.SerializeToString()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(3):
                await refusal(infer(data), "typed contents")
            await eventually(lambda: tracemalloc.get_traced_memory()[0] < len(data))
        finally:
            tracemalloc.stop()
            gc.enable()


async def test_a_message_that_would_be_large_once_parsed_is_refused_unparsed() -> None:
    async with serving(max_body=2**27) as (served, infer), served.channel() as channel:
        await refusal(infer(b"\x2a\x00" * 2**25), "at most 40065536")
        await refusal(method(channel, READY)(b"\xf8\x07\x00" * 2**20), "at most 65536")
        assert served.requests(413) == 1
        assert served.refused("costly") == 2
