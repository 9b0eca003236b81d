"""Workers pass from frontend to frontend: the Ray engine and its roster, without Ray."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import zmq

from engine_conformance import DEPLOYED, SLOW, Events, Failed, Finished, Left, row
from onnx_models import moody_model
from parity_models.models.onnx_model import OnnxModel
from parity_models.serving.ray.deployments import say_goodbye
from parity_models.serving.ray.ray_engine import PATIENCE, RayEngine
from parity_models.serving.ray.roster import FrontendReport, InstanceReport, Replica, Roster
from parity_models.serving.worker.socket_key import SocketKey
from parity_models.serving.worker.sockets import WorkerSockets
from parity_models.serving.worker.worker import Worker
from worker_bench import endpoints

ANY_PORT = "tcp://127.0.0.1:*"


class Cluster:
    """A roster that is always there, and workers that are threads."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self.roster = Roster(-1000.0)
        self.key = SocketKey.new()
        self.workers: list[Worker] = []
        self.cut_off: set[str] = set()
        self.fails: BaseException = OSError("nobody is there")

    def add(self) -> Worker:
        sockets = WorkerSockets(ANY_PORT, ANY_PORT, key=self.key)
        worker = Worker({"deployed": OnnxModel(self._model)}, sockets)
        Thread(target=worker.serve, daemon=True).start()
        self.workers.append(worker)
        self.seen(worker)
        return worker

    def seen(self, worker: Worker, *, leaving: bool = False) -> None:
        key = f"i{self.workers.index(worker)}"
        replica = Replica(key, "b", DEPLOYED, "n", *endpoints(worker))
        self.roster.instance_seen(0.0, InstanceReport(replica, leaving=leaving))

    async def ask(self, report: FrontendReport) -> tuple[Replica, ...]:
        if report.frontend in self.cut_off:
            raise self.fails
        return self.roster.frontend_seen(0.0, report)

    def engine(self, name: str) -> RayEngine:
        # Nobody is to be given up: a worker that is told to end takes the tests with it.
        return RayEngine(
            self.ask,
            name,
            "b",
            "127.0.0.1",
            self.key,
            max_frame=1000,
            heartbeat_timeout=300.0,
            unit_timeout=300.0,
        )

    @asynccontextmanager
    async def frontend(self, name: str) -> AsyncIterator[tuple[RayEngine, Events, str]]:
        """An engine, its events, and the first instance that it gets."""
        engine, events = self.engine(name), Events()
        await engine.start([DEPLOYED], events)
        try:
            yield engine, events, (await events.arrival()).instance
        finally:
            await engine.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    moody_model(tmp_path / "m.onnx")
    return Cluster(tmp_path / "m.onnx")


async def runs(engine: RayEngine, events: Events, instance: str, unit: int) -> None:
    engine.run(instance, unit, "deployed", [row(0, unit)])
    np.testing.assert_array_equal(await events.outputs(unit), [[0, unit]])


async def test_an_instance_that_moves_ends_its_unit_and_is_another_instance_then(
    cluster: Cluster,
) -> None:
    for _ in range(2):
        cluster.add()
    async with cluster.frontend("f") as (engine, events, first):
        second = (await events.arrival()).instance
        stays, moves = sorted((first, second))
        engine.run(moves, 1, "deployed", [row(0, SLOW / 4)])
        async with cluster.frontend("g") as (other, its_events, its):
            # What f was running has been heard of before g had the worker.
            await events.outputs(1)
            assert await events.departure(moves) == "was let go"
            assert its.split(".")[0] == moves.split(".")[0]
            assert its != moves
            await runs(other, its_events, its, 7)
            await runs(engine, events, stays, 2)
        # It comes back when g has stopped.
        back = (await events.arrival()).instance
        assert back.split(".")[0] == moves.split(".")[0]
        assert back != moves
        await runs(engine, events, back, 3)


async def test_a_unit_of_a_frontend_that_has_lost_its_lease_is_ignored(cluster: Cluster) -> None:
    cluster.add()
    async with cluster.frontend("f") as (engine, events, instance):
        # To the roster f is gone, but f does not know.
        cluster.cut_off.add("f")
        cluster.roster.frontend_seen(0.0, FrontendReport("f", "b", leaving=True))
        async with cluster.frontend("g") as (other, its_events, its):
            engine.run(instance, 5, "deployed", [row(0, 1)])
            for unit in (5, 6):
                await runs(other, its_events, its, unit)
            assert its_events.nothing_more()
            assert events.nothing_more()


async def test_a_worker_that_wants_to_leave_is_let_go_after_its_unit(cluster: Cluster) -> None:
    stays, leaves = cluster.add(), cluster.add()
    async with cluster.frontend("f") as (engine, events, first):
        second = (await events.arrival()).instance
        going = second if leaves.lease and leaves.lease.instance == second else first
        staying = first if going == second else second
        engine.run(going, 1, "deployed", [row(0, SLOW / 4)])
        left = asyncio.create_task(asyncio.to_thread(leaves.leave, 30.0))
        await events.outputs(1)
        engine.run(going, 2, "deployed", [row(0, 1)])  # it is leaving, or about to
        seen = await events.next()
        if isinstance(seen, Finished | Failed):
            seen = await events.next()
        assert isinstance(seen, Left)
        assert seen.instance == going
        await left
        assert leaves.lease is None
        await runs(engine, events, staying, 3)
        assert stays.lease is not None


async def test_a_worker_that_nobody_answers_leaves_all_the_same(cluster: Cluster) -> None:
    worker = cluster.add()
    async with cluster.frontend("f"):
        began = time.monotonic()
        worker.leave(30.0)  # on the frontend's thread, which hears nothing meanwhile
        assert time.monotonic() - began < 15


async def test_without_a_roster_instances_stay_as_they_are(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.add()
    async with cluster.frontend("f") as (engine, events, instance):
        cluster.cut_off.add("f")
        while "no word from the roster" not in caplog.text:
            await asyncio.sleep(0.05)
        await runs(engine, events, instance, 1)
        cluster.cut_off.clear()
        await runs(engine, events, instance, 2)
        assert events.nothing_more()


async def test_a_cancelled_question_to_the_roster_does_not_end_the_asking(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.add()
    cluster.fails = asyncio.CancelledError()
    async with cluster.frontend("f") as (engine, events, instance):
        cluster.cut_off.add("f")
        while "no word from the roster" not in caplog.text:
            await asyncio.sleep(0.05)
        cluster.cut_off.clear()
        cluster.add()
        async with asyncio.timeout(60):
            other = (await events.arrival()).instance
        await runs(engine, events, instance, 1)
        await runs(engine, events, other, 2)


async def test_a_seat_that_cannot_be_leased_keeps_no_other_from_being_leased(
    cluster: Cluster,
) -> None:
    cluster.add()
    async with cluster.frontend("f") as (engine, events, _):
        nowhere = Replica("a", "b", DEPLOYED, "n", "no://where", "no://where")
        cluster.roster.instance_seen(0.0, InstanceReport(nowhere))
        cluster.add()
        async with asyncio.timeout(60):
            other = (await events.arrival()).instance
        await runs(engine, events, other, 1)
        assert len(engine.running()) == 2


async def test_garbage_for_a_worker_is_ignored(cluster: Cluster) -> None:
    worker = cluster.add()
    async with cluster.frontend("f") as (engine, events, instance):
        with zmq.Context() as context:
            for endpoint in endpoints(worker):
                with context.socket(zmq.PUSH) as stranger:
                    stranger.linger = 1000
                    stranger.connect(endpoint)
                    for message in (b"", b"\xff" * 100, b'{"unit": 1}'):
                        stranger.send(message)
        await runs(engine, events, instance, 1)
        assert events.nothing_more()


def utilised(context: Any) -> float:
    from parity_models.serving.ray.scaling import Utilisation

    return Utilisation(target=0.5)(context)[0]


def test_there_are_as_many_replicas_as_are_busy_for_the_target_s_share_of_the_time() -> None:
    class Context:
        current_num_replicas = 4
        target_num_replicas = 3
        aggregated_metrics: dict[str, dict[str, float]]

    context = Context()
    for used, wanted in {(1.0, 1.0, 1.0, 1.0): 8, (0.5,) * 4: 4, (0.1, 0.0): 0.4, (): 3}.items():
        context.aggregated_metrics = {"utilisation": dict(zip("abcd", used, strict=False))}
        assert utilised(context) == pytest.approx(wanted)


@pytest.mark.parametrize(("leased", "least", "most"), [(False, 0.0, 1.0), (True, PATIENCE, 60.0)])
async def test_an_instance_that_nobody_has_does_not_wait_for_a_roster_that_has_ended(
    leased: bool, least: float, most: float
) -> None:
    asked = []

    async def report() -> None:
        asked.append(True)
        await asyncio.Event().wait()

    began = time.monotonic()
    await say_goodbye(report, lambda: leased)
    assert least <= time.monotonic() - began < most
    assert asked
