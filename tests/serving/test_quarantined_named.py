"""Instances that answered wrongly are named in the metadata of their model."""

from typing import Any, cast

import grpc
import httpx

from grpc_served import Waiting, method
from http_served import MODEL
from parity_models.serving.grpc.grpc_server import GrpcServer
from parity_models.serving.grpc.inference_pb2 import ModelMetadataRequest
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import ServedVersion
from parity_models.serving.rest.asgi import AsgiApp
from parity_models.serving.rest.service import Rest

METADATA = "/inference.GRPCInferenceService/ModelMetadata"


class Lying(Waiting):
    quarantined = ("1", "0.1")  # type: ignore[assignment]  # a stand-in for Frontend's


async def test_rest_and_grpc_name_them() -> None:
    limits, models = Limits(), ServedVersion(cast(Any, Lying()), MODEL)
    app = AsgiApp(Rest(models, Metrics(), limits, ByteBudget(limits.max_in_flight)))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        about = (await client.get(f"/v2/models/{MODEL.name}")).json()
    assert about["quarantined_instances"] == ["1", "0.1"]

    server = GrpcServer(models, Metrics(), limits, ByteBudget(limits.max_in_flight))
    url = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
        call = method(channel, METADATA)(ModelMetadataRequest(name=MODEL.name).SerializeToString())
        told = dict(await call.trailing_metadata() or ())
    await server.stop()
    assert told["quarantined-instances"] == "1,0.1"
