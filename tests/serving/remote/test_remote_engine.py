"""The remote engine runs units on servers of the protocol, and outlives them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_conformance import EngineConformance, Fleet
from fleet_servers import PATIENCE, Parm
from local_engines import parts
from onnx_models import moody_model
from parity_models.bundle.bundle import NewModel, write_bundle
from parity_models.bundle.onnx_model import PinnedModel
from parity_models.serving.engine import Engine
from parity_models.serving.remote.remote_engine import RemoteEngine, UpstreamOptions
from parity_models.serving.remote.upstream import Upstream

pytestmark = pytest.mark.slow


class RemoteFleet(Fleet):
    """Two servers of the moody model, the second with the name of a parity model too."""

    failure = "answered with an error"

    def __init__(self, folder: Path, scheme: str) -> None:
        moody_model(folder / "m.onnx")
        self._model = folder / "m.onnx"
        model = NewModel(self._model, "moody")
        bundle = write_bundle(folder / "bundle", deployed=model, parity=[], code=None)
        self._scheme = scheme
        # The machine may be busy.
        patient = ("--deadline", str(PATIENCE))
        self._servers = [Parm(bundle.path, *patient) for _ in range(2)]

    def engine(self) -> RemoteEngine:
        urls = [
            server.grpc_url if self._scheme == "grpc" else server.url for server in self._servers
        ]
        upstreams = (
            Upstream(urls[0], {"deployed": "model"}),
            Upstream(urls[1], {"deployed": "model", "parity-0": "model"}),
        )
        models = dict.fromkeys(("deployed", "parity-0"), PinnedModel.of(self._model))
        return RemoteEngine(UpstreamOptions(), parts(models, unit_timeout=PATIENCE), upstreams)

    def kill(self, engine: Engine, number: int) -> None:
        self._dead = self._servers[number]
        self._dead.kill()

    def mend(self) -> None:
        self._dead.start()

    def close(self) -> None:
        for server in self._servers:
            server.__exit__(None, None, None)


@pytest.fixture(scope="module", params=["http", "grpc"])
def fleet(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RemoteFleet]:
    fleet = RemoteFleet(tmp_path_factory.mktemp("moody"), request.param)
    yield fleet
    fleet.close()


class TestRemoteEngine(EngineConformance):
    pass
