"""Calls for health and reflection have bounds, and keep no prediction out."""

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from grpc_served import request, serving

HEALTH = "/grpc.health.v1.Health"
QUESTION = health_pb2.HealthCheckRequest()
SERVING = health_pb2.HealthCheckResponse.SERVING


async def is_watched(stub: Any) -> bool:
    """Whether one more stream is answered, and not refused."""
    with suppress(AioRpcError):
        return bool((await stub.Watch(QUESTION).read()).status == SERVING)
    return False


async def test_streams_of_health_keep_no_prediction_out() -> None:
    async with AsyncExitStack() as stack:
        served, infer = await stack.enter_async_context(serving(max_rpcs=2, max_connections=5))
        served.frontend.may.set()
        channels = [await stack.enter_async_context(served.channel()) for _ in range(3)]
        stubs: list[Any] = [health_pb2_grpc.HealthStub(each) for each in channels]
        watching = [stub.Watch(QUESTION) for stub in stubs for _ in range(50)]
        first = [asyncio.ensure_future(each.read()) for each in watching]
        await asyncio.wait(first)
        answered = [each.result() for each in first if each.exception() is None]
        assert [each.status for each in answered] == [SERVING] * 5
        refused = [each for each in watching if each.done()]
        assert len(refused) == 145
        for each in refused:
            assert await each.code() is StatusCode.RESOURCE_EXHAUSTED
            assert "at most 5 streams of health" in await each.details()
        assert served.refused("streams") == len(refused)
        assert (await stubs[0].Check(QUESTION)).status == SERVING
        await asyncio.gather(infer(request()), infer(request()))
        for each in watching:
            each.cancel()
        async with asyncio.timeout(120):  # until the server has heard of it
            while not await is_watched(stubs[0]):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("method", [f"{HEALTH}/Check", f"{HEALTH}/Watch"])
async def test_garbage_is_a_client_s_mistake(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (served, _), served.channel() as channel:
        ask: Any = channel.unary_stream(method)
        call = ask(b"\x0a\xff")
        assert await call.code() is StatusCode.INVALID_ARGUMENT
        assert not caplog.records
