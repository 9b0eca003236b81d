"""Whatever bytes come over gRPC, a call ends, and never with a failure of the server's."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import numpy as np
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fuzzing import fuzz
from parity_models.models.signature import Signature, TensorSpec
from parity_models.scheduling import Source
from parity_models.serving.grpc.grpc_server import SERVICE, GrpcServer
from parity_models.serving.grpc.inference_pb2 import ModelInferRequest
from parity_models.serving.in_flight import Result
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import ServedModel, ServedVersion
from parity_models.serving.protocol import MAX_TENANT

WIDTH = 3
SPEC = TensorSpec("x", "FP32", (WIDTH,))
MODEL = ServedModel("model", Signature.of(SPEC, SPEC), max_rows=4)
REFUSALS = {StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.RESOURCE_EXHAUSTED}


class Echo:
    """A frontend that checks what reaches it, and answers with it."""

    ready = True
    quarantined = ("0.1",)

    async def infer(
        self,
        rows: NDArray[Any],
        timeout: float | None = None,
        *,
        tenant: str | None,
        exact: bool,
    ) -> Result:
        assert rows.dtype == np.float32
        assert rows.shape[1:] == (WIDTH,)
        assert 1 <= len(rows) <= MODEL.max_rows
        assert timeout is None or timeout > 0
        assert tenant is None or 1 <= len(tenant) <= MAX_TENANT
        assert exact in (True, False)
        return Result(rows, [Source.MODEL] * len(rows))


NAMES = st.sampled_from(["x", "y", "", "model", "timeout", "tenant", "redundancy", "a" * 200])
PARAMETERS = st.dictionaries(
    NAMES,
    st.one_of(
        st.fixed_dictionaries({"string_param": st.sampled_from(["exact", "any", ""]) | st.text()}),
        st.fixed_dictionaries({"int64_param": st.integers(-(2**63), 2**63 - 1)}),
        st.fixed_dictionaries({"uint64_param": st.integers(0, 2**64 - 1)}),
        st.fixed_dictionaries({"double_param": st.floats()}),
        st.fixed_dictionaries({"bool_param": st.booleans()}),
        st.just({}),
    ),
    max_size=3,
)
CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "fp32_contents": st.lists(st.floats(width=32), max_size=7),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=7),
        "bytes_contents": st.lists(st.binary(max_size=4), max_size=3),
    },
)
TENSORS = st.fixed_dictionaries(
    {"name": st.just("x") | NAMES, "datatype": st.just("FP32") | NAMES},
    optional={
        "shape": st.just([1, WIDTH]) | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
        "parameters": PARAMETERS,
        "contents": st.just({"fp32_contents": [1.0] * WIDTH}) | CONTENTS,
    },
)
MESSAGES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"model_name": st.just("model") | NAMES, "inputs": st.lists(TENSORS, max_size=2)},
    optional={
        "model_version": st.sampled_from(["", "1", "2"]),
        "id": st.text(),
        "parameters": PARAMETERS,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.just("x") | NAMES, "parameters": PARAMETERS}),
            max_size=2,
        ),
        "raw_input_contents": st.lists(
            st.just(bytes(4 * WIDTH)) | st.binary(max_size=60), max_size=2
        ),
    },
)
"""Messages that are nearly right, mostly."""


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A message's bytes, cut, changed and repeated in some places."""
    whole = bytearray(ModelInferRequest(**draw(MESSAGES)).SerializeToString(deterministic=True))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(whole)))
        how = draw(st.sampled_from(["byte", "cut", "insert", "repeat"]))
        if how == "byte" and at < len(whole):
            whole[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del whole[at : at + draw(st.integers(0, 20))]
        elif how == "insert":
            whole[at:at] = draw(st.binary(max_size=20))
        else:
            # Far enough, at times, that it is no longer small.
            end = at + draw(st.integers(0, 20))
            whole[at:at] = bytes(whole[at:end]) * draw(st.sampled_from([1, 2, 5000]))
    return bytes(whole)


BYTES = mutated() | st.binary(max_size=200)


@contextmanager
def served() -> Iterator[tuple[asyncio.Runner, grpc.aio.Channel]]:
    """An event loop on which a server runs, and a channel to it."""

    async def start() -> tuple[GrpcServer, str]:
        limits = Limits(max_body=2**20, body_timeout=5)
        server = GrpcServer(
            ServedVersion(Echo(), MODEL), Metrics(), limits, ByteBudget(limits.max_in_flight)
        )
        return server, await server.start("127.0.0.1", 0)

    async def connect(url: str) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(url.removeprefix("grpc://"))

    with asyncio.Runner() as runner:
        server, url = runner.run(start())
        channel = runner.run(connect(url))
        try:
            yield runner, channel
        finally:
            runner.run(channel.close())
            runner.run(server.stop())


def test_every_call_ends_with_a_status_that_is_not_the_server_s_failure() -> None:
    methods = st.sampled_from(["ModelInfer", *(method.name for method in SERVICE.methods)])

    async def status(channel: grpc.aio.Channel, method: str, message: bytes) -> StatusCode:
        name = f"/{SERVICE.full_name}/{method}"
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(name)
        return await ask(message, timeout=30).code()

    with served() as (runner, channel):

        @fuzz(100)
        @given(methods, BYTES)
        def every_call_ends(method: str, message: bytes) -> None:
            code = runner.run(status(channel, method, message))
            assert code is StatusCode.OK or code in REFUSALS

        every_call_ends()
        whole = ModelInferRequest(
            model_name="model",
            inputs=[{"name": "x", "datatype": "FP32", "shape": [1, WIDTH]}],
            raw_input_contents=[bytes(4 * WIDTH)],
        )
        last = partial(status, channel, "ModelInfer", whole.SerializeToString())
        assert runner.run(last()) is StatusCode.OK
