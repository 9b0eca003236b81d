"""A real gRPC server over a frontend that answers when it is told to."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc

from http_served import Echo, eventually
from parity_models.serving.grpc.grpc_server import GrpcServer
from parity_models.serving.grpc.protos import ModelInferRequest
from parity_models.serving.inference import Inference
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import ServedModel, ServedVersion
from parity_models.tensors.signature import Signature, TensorSpec

SPEC = TensorSpec("x", "FP32", (4,))
INFER = "/inference.GRPCInferenceService/ModelInfer"
READY = "/inference.GRPCInferenceService/ServerReady"


class Served:
    def __init__(self, frontend: Echo, budget: ByteBudget, metrics: Metrics, server: GrpcServer):
        self.frontend, self.budget, self.metrics = frontend, budget, metrics
        self.server = server
        self.address = ""

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
    frontend, metrics = Echo(), Metrics()
    frontend.may.clear()
    bounds = Limits(**limits)
    budget = ByteBudget(bounds.max_in_flight)
    model = ServedModel("model", Signature.of(SPEC, SPEC), max_rows=10**6)
    version = ServedVersion(cast(Any, frontend), model, metrics)
    server = GrpcServer(Inference(version, budget), bounds)
    served = Served(frontend, budget, metrics, server)
    served.address = (await server.start("127.0.0.1", 0)).removeprefix("grpc://")
    channel = served.channel()
    try:
        yield served, method(channel)
    finally:
        frontend.may.set()
        await channel.close()
        await server.stop()
        await eventually(lambda: budget.held == 0)


def method(
    channel: grpc.aio.Channel, name: str = INFER
) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    return channel.unary_unary(name)


def request(rows: int = 1) -> bytes:
    message = ModelInferRequest(model_name="model")
    message.inputs.add(name="x", datatype="FP32", shape=(rows, 4))
    message.raw_input_contents.append(bytes(16 * rows))
    return bytes(message.SerializeToString())
