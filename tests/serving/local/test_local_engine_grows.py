"""The local engine has more workers, or fewer, while it runs."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from engine_conformance import DEPLOYED, Joined, row
from local_engines import FOREVER, running
from onnx_models import moody_model
from parity_models.models.bundle import open_bundle
from parity_models.serving.local.local_engine import LocalEngine
from parity_models.serving.server import ServeOptions, Server
from served import is_alive, predictions, queries, write_linear_bundle

pytestmark = pytest.mark.slow

UNNEEDED = "is not needed any more"


async def gone(engine: LocalEngine) -> None:
    while engine.ending:
        await asyncio.sleep(0.01)


async def test_one_that_is_dismissed_goes_and_its_place_is_the_next_to_be_filled(
    tmp_path: Path,
) -> None:
    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx", [DEPLOYED] * 2) as (engine, events):
        (pid,) = (pid for instance, pid in engine.pids().items() if instance == "0")
        engine.dismiss("0")
        assert (engine.places, engine.ending) == (1, 1)
        assert await events.departure("0") == UNNEEDED
        await gone(engine)
        assert not is_alive(pid)
        engine.dismiss("0")
        for instance in ("0.1", "2"):
            engine.add(DEPLOYED)
            assert await events.next() == Joined(instance, DEPLOYED)
            engine.run(instance, 1, "deployed", [row(0, 5)])
            await events.outputs(1)
        assert engine.places == 3
        assert engine.running().keys() == {"0.1", "1", "2"}


async def test_places_are_given_up_of_those_that_are_not_up(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx", [DEPLOYED] * 2) as (engine, events):
        assert not engine.give_up_place()
        engine.add(DEPLOYED)
        assert engine.give_up_place()
        await gone(engine)
        os.kill(engine.pids()["1"], signal.SIGKILL)
        assert "signal 9" in await events.departure("1")
        assert engine.give_up_place()
        await gone(engine)
        assert not engine.give_up_place()
        assert list(engine.pids()) == ["0"]
        assert engine.places == 1
        assert events.nothing_more()


async def test_a_worker_that_was_added_is_replaced_like_any_other(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx", unit_timeout=0.5) as (engine, events):
        engine.add(DEPLOYED)
        await events.arrival()
        engine.run("1", 1, "deployed", [row(0, FOREVER)])
        await events.departure("1")
        assert await events.next() == Joined("1.1", DEPLOYED)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_linear_bundle(tmp_path_factory.mktemp("linear"))


async def up(server: Server, instances: int) -> None:
    async with asyncio.timeout(60):
        while server.frontend.instances_up()["deployed"] != instances:
            await asyncio.sleep(0.01)


async def test_a_server_grows_and_shrinks_and_no_query_fails(bundle: Path) -> None:
    options = ServeOptions(port=None, instances=3)
    async with Server(open_bundle(bundle), options) as server:
        over = False

        async def ask(seed: int) -> None:
            rows = queries(4, seed)
            while not over:
                answers = await server.frontend.infer(rows)
                assert abs(answers.outputs - predictions(rows)).max() < 1e-3

        clients = [asyncio.create_task(ask(seed)) for seed in range(6)]
        engine = server.engine
        assert isinstance(engine, LocalEngine)
        for instances in (1, 3, 2, 1):
            await server.frontend.shrink_to(instances)
            server.frontend.grow_to(instances)
            assert engine.places == instances
            await up(server, instances)
        over = True
        await asyncio.gather(*clients)
        assert not server.registry.get_sample_value("parm_instance_restarts_total")
        (pid,) = engine.pids().values()
        server.frontend.grow_to(2)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while is_alive(pid):
                await asyncio.sleep(0.01)
        await server.frontend.shrink_to(1)
        assert engine.places == 1
        await up(server, 1)
        await server.frontend.infer(queries(1))
