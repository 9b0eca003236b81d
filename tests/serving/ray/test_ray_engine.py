"""The Ray engine runs units on replicas that the roster leases to it."""

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from engine_conformance import (
    BOTH,
    DEPLOYED,
    EngineConformance,
    Fleet,
)
from onnx_models import moody_model
from parity_models.codes import CodeSpec
from parity_models.models.bundle import NewModel, open_bundle, write_bundle
from parity_models.serving.engine import Engine
from parity_models.serving.plan import model_files
from parity_models.serving.ray.app import InstancePool, instances_app, roster_app
from parity_models.serving.ray.cluster import delete
from parity_models.serving.ray.cluster_options import ClusterOptions
from parity_models.serving.ray.deployments import deployment_name
from parity_models.serving.ray.ray_engine import RayEngine
from parity_models.serving.ray.store import BundleFiles, put_bundle
from parity_models.serving.worker.socket_key import SocketKey
from ray_cluster import SMALL, kill_replica
from whole_bundle import tamper

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

FOREVER = 1e15
"""Steps of the moody model that nobody waits for."""


class RayFleet(Fleet):
    """Instances for WORKS, a deployment each, on a cluster of this machine."""

    _names = count()

    def __init__(self, files: BundleFiles, key: SocketKey) -> None:
        self._files = files
        self._key = key
        self._roster = serve.get_deployment_handle("Roster", "test")

    def engine(self) -> RayEngine:
        return RayEngine(
            self._roster.frontend_seen.remote,
            f"frontend-{next(self._names)}",
            deployment_name(self._files, self._key),
            "127.0.0.1",
            self._key,
            max_frame=10_000,
            # The machine may be busy; that an instance is killed is noticed otherwise.
            heartbeat_timeout=60.0,
            unit_timeout=200.0,
        )

    def kill(self, engine: Engine, number: int) -> None:
        assert isinstance(engine, RayEngine)
        roles = [DEPLOYED, BOTH][number]
        (key,) = (replica.key for replica in engine.replicas().values() if replica.roles == roles)
        kill_replica(*key.split("-"))

    def mend(self) -> None:
        """Ray starts replicas again by itself."""


@pytest.fixture(scope="module")
def fleet(ray_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayFleet]:
    class Root:  # in here, so that it need not be imported where it runs
        """What stands for frontends: the tests have their own."""

        def __init__(self, *deployments: Any) -> None:
            pass

    folder = tmp_path_factory.mktemp("moody")
    moody_model(folder / "m.onnx")
    model = NewModel(folder / "m.onnx", "moody")
    code = CodeSpec("sum", "subtraction", 2)
    bundle = write_bundle(folder / "bundle", deployed=model, parity=[model], code=code)
    cluster = ClusterOptions(cpus_per_instance=SMALL)
    files = put_bundle(bundle)
    roster = roster_app(files)
    key = SocketKey.new()
    models = model_files(bundle)
    pools = [
        instances_app(
            roster,
            files,
            {role: models[role] for role in roles},
            InstancePool(name, roles, 1, 1),
            cluster,
            key,
        )
        for name, roles in {"deployed": DEPLOYED, "shared": BOTH}.items()
    ]
    root: Any = serve.deployment(Root)
    serve.run(root.bind(roster, *pools), name="test", route_prefix=None)
    yield RayFleet(files, key)
    delete("test")


class TestRayEngine(EngineConformance):
    pass


def test_a_bundle_that_an_older_version_wrote_reaches_replicas(
    ray_url: str, tmp_path: Path
) -> None:
    def as_in_format_2(content: dict[str, Any]) -> None:
        content["format_version"] = 2
        del content["backups"], content["backup_trainings"]

    moody_model(tmp_path / "m.onnx")
    written = write_bundle(tmp_path / "bundle", deployed=NewModel(tmp_path / "m.onnx", "moody"))
    tamper(written.path, as_in_format_2)
    older = open_bundle(written.path)
    assert older.digest != written.digest
    assert asyncio.run(put_bundle(older).manifest()) == older.manifest
