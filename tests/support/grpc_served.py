"""A real gRPC server over a frontend that answers when it is told to."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from parity_models.models.signature import Signature, TensorSpec
from parity_models.scheduling import Source
from parity_models.serving.errors import RequestError
from parity_models.serving.frontend import Result
from parity_models.serving.grpc.grpc_server import GrpcServer
from parity_models.serving.grpc.inference_pb2 import ModelInferRequest
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import ServedModel, ServedVersion

SPEC = TensorSpec("x", "FP32", (4,))
INFER = "/inference.GRPCInferenceService/ModelInfer"
READY = "/inference.GRPCInferenceService/ServerReady"


class Waiting:
    """A frontend that answers when it is told to, with the rows themselves."""

    ready = True
    quarantined = ()

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = 0
        self.abandoned = 0
        self.error: RequestError | None = None
        self.widen = 1

    def check_admission(self, rows: int, timeout: float | None) -> None:
        pass

    async def infer(
        self, rows: NDArray[Any], timeout: float | None = None, **sharing: object
    ) -> Result:
        self.asked += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.abandoned += 1
            raise
        if self.error is not None:
            raise self.error
        return Result(np.tile(rows, (1, self.widen)), [Source.MODEL] * len(rows))


class Served:
    def __init__(self, frontend: Waiting, budget: ByteBudget, metrics: Metrics, address: str):
        self.frontend, self.budget, self.metrics = frontend, budget, metrics
        self.address = address

    def channel(self, **options: int) -> grpc.aio.Channel:
        apart = {"grpc.use_local_subchannel_pool": 1, "grpc.max_receive_message_length": -1}
        return grpc.aio.insecure_channel(self.address, [*(apart | options).items()])

    def refused(self, why: str) -> float:
        labels = {"why": why}
        return self.metrics.registry.get_sample_value("parm_refused_total", labels) or 0

    def requests(self, status: int) -> float:
        labels = {"code": str(status)}
        return self.metrics.registry.get_sample_value("parm_requests_total", labels) or 0


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[tuple[Served, Any]]:
    """A server with these limits, and the method ModelInfer, on bytes, of a channel to it."""
    frontend, metrics = Waiting(), Metrics()
    bounds = Limits(**limits)
    budget = ByteBudget(bounds.max_in_flight)
    model = ServedModel("model", Signature.of(SPEC, SPEC), max_rows=10**6)
    server = GrpcServer(ServedVersion(cast(Any, frontend), model), metrics, bounds, budget)
    url = await server.start("127.0.0.1", 0)
    served = Served(frontend, budget, metrics, url.removeprefix("grpc://"))
    channel = served.channel()
    try:
        yield served, method(channel)
    finally:
        frontend.go.set()
        await channel.close()
        await server.stop()
        await until(lambda: budget.held == 0)


def method(
    channel: grpc.aio.Channel, name: str = INFER
) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    return channel.unary_unary(name)


def request(rows: int = 1) -> bytes:
    message = ModelInferRequest(model_name="model")
    message.inputs.add(name="x", datatype="FP32", shape=(rows, 4))
    message.raw_input_contents.append(bytes(16 * rows))
    return message.SerializeToString()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.005)
