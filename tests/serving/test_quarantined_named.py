"""Instances that answered wrongly are named in the metadata of their model, of several, too."""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import httpx
import pytest

from grpc_served import Waiting, method
from http_served import MODEL
from parity_models.serving.errors import InvalidRequestError, NotFoundError
from parity_models.serving.grpc.grpc_server import GrpcServer
from parity_models.serving.grpc.inference_pb2 import ModelMetadataRequest
from parity_models.serving.http import HttpServer, listen, url_of
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import IndexEntry, ServedVersion
from parity_models.serving.rest.service import Rest
from parity_models.serving.served_model import ServedModel

LIARS = {"honest": (), "lying": ("1", "0.1")}
METADATA = "/inference.GRPCInferenceService/ModelMetadata"


class Asked(Waiting):
    def __init__(self, liars: Sequence[str]) -> None:
        super().__init__()
        self.quarantined = tuple(liars)  # type: ignore[assignment]


class Two:
    """Two models, one of which had instances that lied."""

    extensions: Sequence[str] = ()
    why_unready = ""
    only = None
    largest = MODEL

    def __init__(self) -> None:
        self._all = {
            name: ServedVersion(Asked(liars), ServedModel(name, MODEL.signature, 2000))
            for name, liars in LIARS.items()
        }

    @property
    def names(self) -> Sequence[str]:
        return tuple(self._all)

    def versions(self, name: str) -> Sequence[str]:
        return ("1",)

    def find(self, name: str, version: str | None) -> ServedVersion:
        if name not in self._all:
            raise NotFoundError("there is none")
        return self._all[name]

    choose = find

    def index(self) -> Sequence[IndexEntry]:
        return ()

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        raise InvalidRequestError("these two are all")

    async def unload(self, name: str) -> None:
        raise InvalidRequestError("these two are all")


@pytest.mark.parametrize(("name", "liars"), LIARS.items())
async def test_rest_names_them(name: str, liars: tuple[str, ...]) -> None:
    metrics, limits = Metrics(), Limits()
    server = HttpServer(Rest(Two(), metrics, limits, ByteBudget(limits.max_in_flight)), metrics)
    socket = listen("127.0.0.1", 0)
    server.start(socket)
    async with httpx.AsyncClient(base_url=url_of(socket)) as client:
        about = (await client.get(f"/v2/models/{name}")).json()
    await server.stop()
    assert tuple(about.get("quarantined_instances", ())) == liars


@pytest.mark.parametrize(("name", "liars"), LIARS.items())
async def test_grpc_names_them(name: str, liars: tuple[str, ...]) -> None:
    limits = Limits()
    server = GrpcServer(Two(), Metrics(), limits, ByteBudget(limits.max_in_flight))
    url = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
        call = method(channel, METADATA)(ModelMetadataRequest(name=name).SerializeToString())
        told = dict(await call.trailing_metadata() or ())
    await server.stop()
    assert told.get("quarantined-instances", "") == ",".join(liars)
