"""The Ray engine runs units in actors, of this process's server or of `parm serve`."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from commands import assert_refused, parm
from engine_conformance import BOTH, DEPLOYED, EngineConformance, Events, Finished, Fleet, row
from local_engines import FOREVER, parts
from onnx_models import linear_model, moody_model
from parity_models.bundle.onnx_model import PinnedModel
from parity_models.errors import ModelError, ServingError
from parity_models.serving.engine import Engine
from parity_models.serving.options import EngineChoice
from parity_models.serving.ray.cluster import ActorInstance
from parity_models.serving.ray.ray_engine import RayEngine
from parity_models.simulation.emulation import Constant, FaultPlan
from ports import free_ports
from ray_cluster import SMALL, init_ray, other_cluster
from repositories import ADMINISTRATOR, Repository, administered, write_version
from served import ServerProcess, until, write_linear_bundle

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster that this process is connected to."""
    init_ray(num_cpus=4)
    yield
    ray.shutdown()


class RayFleet(Fleet):
    """Engines on the cluster that this process is connected to."""

    def __init__(self, model: Path) -> None:
        self._model = model

    def engine(self, *, cpus: float = SMALL, **options: Any) -> RayEngine:
        models = dict.fromkeys(("deployed", "parity-0"), PinnedModel.of(self._model))
        settings = RayEngine.Options(address="auto", cpus_per_instance=cpus)
        engine = RayEngine(settings, parts(models, **{"unit_timeout": 200.0} | options))
        # The machine may be busy; that an instance is killed is noticed otherwise.
        engine.heartbeat_timeout = 60.0
        return engine

    def kill(self, engine: Engine, number: int) -> None:
        assert isinstance(engine, RayEngine)
        instance = engine._instances[str(number)]
        assert isinstance(instance, ActorInstance)
        ray.kill(instance._actor)


@pytest.fixture
def fleet(cluster: None, tmp_path: Path) -> RayFleet:
    moody_model(tmp_path / "m.onnx")
    return RayFleet(tmp_path / "m.onnx")


class TestRayEngine(EngineConformance):
    """The engine does what every engine does."""


async def test_a_cancelled_unit_ends_early_and_a_hung_one_its_instance(fleet: RayFleet) -> None:
    engine, events = fleet.engine(unit_timeout=3.0), Events()
    await engine.start([DEPLOYED], events)
    joined = await events.arrival()
    assert joined.node == ray.get_runtime_context().get_node_id()
    engine.run(joined.instance, 1, "deployed", [row(0, FOREVER)])
    engine.cancel(joined.instance, 1)
    assert await events.failure(1) == "cancelled"
    engine.run(joined.instance, 2, "deployed", [row(0, FOREVER)])
    assert await events.departure(joined.instance) == "had unit 2 for more than 3 s"
    joined = await events.arrival()
    engine.run(joined.instance, 3, "deployed", [row(0, 5)])
    await events.outputs(3)
    await engine.stop()


async def test_faults_slow_units(fleet: RayFleet) -> None:
    engine, events = fleet.engine(), Events()
    await engine.start([DEPLOYED], events)
    joined = await events.arrival()
    engine.inject_faults(FaultPlan(service_time=Constant(0.5)))
    engine.run(joined.instance, 1, "deployed", [row(0, 0)])
    report = await events.expect(Finished)
    assert report.ended is None, "the clock is another machine's"
    await engine.stop()


async def test_deployment_that_cannot_start_is_refused(fleet: RayFleet, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="reserve 2000 CPUs and the cluster has"):
        await fleet.engine(cpus=1000).start([DEPLOYED, BOTH], Events())
    engine = fleet.engine()
    linear_model(tmp_path / "m.onnx", (2,), (2,))
    with pytest.raises(ModelError, match="was changed since it was checked"):
        await engine.start([DEPLOYED], Events())
    assert EngineChoice("ray").settings.cpus_per_instance == 1.0


# As a process of its own, which starts a cluster or joins one


@pytest.mark.parametrize("joins", [False, True])
def test_a_server_survives_a_kill_and_leaves_nothing(tmp_path: Path, joins: bool) -> None:
    bundle = write_linear_bundle(tmp_path)
    arguments = ("--policy", "parity", "--deadline", "20s")

    def serve(engine: str) -> None:
        with ServerProcess(str(bundle), "--engine", engine, *arguments) as server:
            with server.under_load() as clients:
                clients.more()
                os.kill(actors()[0], signal.SIGKILL)
                clients.more(100)
            assert server.metric("parm_query_failures_total") == 0
            until(lambda: server.metric("parm_instance_restarts_total") >= 1, "it is not replaced")
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
        until(lambda: not actors(), "an actor is left")  # a dying cluster takes them with it

    if joins:
        with other_cluster(cpus=4) as address:
            serve(f"ray@address={address},cpus-per-instance={SMALL}")
    else:
        serve("ray")


def actors() -> list[int]:
    """The processes of actors on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::Instance"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_versions_of_a_repository_have_their_instances_on_one_cluster(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_version(folder, "first", "1")
    write_version(folder, "other", "7", times=7)
    options = ("--engine", "ray", *administered(tmp_path))
    with ServerProcess("--repository", str(folder), *options) as server:
        repository = Repository(folder, server)
        assert repository.infer("first") == ("1", 1.0)
        assert repository.infer("other") == ("7", 7.0)
        write_version(folder, "first", "2", times=2)
        url = f"{server.url}/v2/repository/models/first/load"
        assert httpx.post(url, headers=ADMINISTRATOR, timeout=240).status_code == 200
        assert repository.infer("first") == ("2", 2.0)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    until(lambda: not actors(), "an actor is left")


def test_a_cluster_that_cannot_be_reached_is_explained(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path)
    (port,) = free_ports(1)
    for address, why in [
        (f"127.0.0.1:{port}", f"no Ray cluster can be reached at 127.0.0.1:{port}"),
        ("nowhere", "no Ray cluster can be reached at nowhere"),
        ("ray://127.0.0.1:10001", "is the address of a remote driver"),
    ]:
        on_ray = ("--engine", f"ray@address={address}", "--port", "0")
        serve = parm("serve", str(bundle), *on_ray)
        # In a process that is not connected to a cluster.
        refused = subprocess.run(serve, capture_output=True, text=True, check=False, timeout=120)
        assert_refused(refused, why)
