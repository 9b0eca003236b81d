"""Arbitrary bytes over gRPC end the call, and never with a failure of the server's."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz, mutated
from grpc_served import method, request, serving
from parity_models.serving.grpc.codec import SERVICE
from parity_models.serving.grpc.protos import ModelInferRequest

pytestmark = pytest.mark.usefixtures("transport")

REFUSALS = {StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.RESOURCE_EXHAUSTED}


def typed() -> bytes:
    """A request with typed contents and parameters."""
    message = ModelInferRequest(model_name="model", model_version="1", id="7")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=(1, 4))
    tensor.contents.fp32_contents.extend((1.0, 2.0, 3.0, 4.0))
    message.outputs.add(name="x")
    message.parameters["timeout"].int64_param = 5_000_000
    message.parameters["redundancy"].string_param = "exact"
    message.parameters["tenant"].string_param = "a"
    return bytes(message.SerializeToString(deterministic=True))


MESSAGES = mutated(st.sampled_from([request(1), request(3), typed(), b"\x0a\x05model"]))
METHODS = st.sampled_from(["ModelInfer", *(method.name for method in SERVICE.methods)])


def test_every_call_ends_with_a_status_that_is_not_the_server_s_failure() -> None:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        served, _ = runner.run(stack.enter_async_context(serving(max_body=2**20)))
        served.frontend.may.set()
        channel = served.channel()

        async def status(name: str, message: bytes) -> StatusCode:
            ask = method(channel, f"/{SERVICE.full_name}/{name}")
            return await ask(message, timeout=30).code()

        @fuzz(150)
        @given(METHODS, MESSAGES)
        def every_call_ends(name: str, message: bytes) -> None:
            code = runner.run(status(name, message))
            assert code is StatusCode.OK or code in REFUSALS

        every_call_ends()
        assert runner.run(status("ModelInfer", request())) is StatusCode.OK
        runner.run(channel.close())
        runner.run(stack.aclose())
