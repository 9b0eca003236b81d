"""The local engine runs units on worker processes, as an engine should."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
import zmq
from numpy.typing import NDArray

from engine_conformance import (
    BOTH,
    DEPLOYED,
    SLOW,
    EngineConformance,
    Events,
    Finished,
    Fleet,
    Joined,
    row,
)
from local_engines import FOREVER, PATIENT, running
from onnx_models import linear_model, moody_model, shrinking_model
from parity_models.errors import FaultPlanError
from parity_models.faults import Constant, FaultPlan, Kill
from parity_models.models.pinned_model import PinnedModel
from parity_models.serving.engine import Engine
from parity_models.serving.local.local_engine import LocalEngine
from parity_models.serving.local.placement import Addresses, Placement
from parity_models.serving.local.process import WorkerProcess
from parity_models.serving.metrics import Metrics
from parity_models.serving.worker.wire import Failed as WorkerFailed
from parity_models.serving.worker.wire import Finished as WorkerFinished
from parity_models.serving.worker.wire import Heartbeat, InjectFaults, Lease, encode

pytestmark = pytest.mark.slow


class LocalFleet(Fleet):
    def __init__(self, model: Path) -> None:
        self._models = dict.fromkeys(("deployed", "parity-0"), PinnedModel.of(model))

    def engine(self) -> LocalEngine:
        return LocalEngine(self._models, **PATIENT)

    def kill(self, engine: Engine, number: int) -> None:
        assert isinstance(engine, LocalEngine)
        os.kill(engine.pids()[str(number)], signal.SIGKILL)

    def mend(self) -> None:
        """The engine starts workers again by itself."""


class TestLocalEngine(EngineConformance):
    @pytest.fixture
    def fleet(self, tmp_path: Path) -> LocalFleet:
        moody_model(tmp_path / "m.onnx")
        return LocalFleet(tmp_path / "m.onnx")


async def test_every_row_of_a_batch_gets_its_output(tmp_path: Path) -> None:
    weights = linear_model(tmp_path / "m.onnx", (1, 8, 8), (2, 5))
    rows = np.random.default_rng(1).normal(size=(8, 1, 8, 8)).astype(np.float32)
    async with running(tmp_path / "m.onnx", [DEPLOYED, BOTH]) as (engine, events):
        unit = 0
        for instance, role in [("0", "deployed"), ("1", "deployed"), ("1", "parity-0")]:
            for size in (1, 3, 8, 2, 1):
                unit += 1
                engine.run(instance, unit, role, list(rows[:size]))
                outputs = await events.outputs(unit)
                expected = (rows[:size].reshape(size, -1) @ weights).reshape(size, 2, 5)
                assert outputs.dtype == np.float32
                np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


async def test_a_finished_unit_says_when_its_worker_ran_it(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx") as (engine, events):
        before = time.monotonic()
        engine.run("0", 1, "deployed", [row(0, SLOW)])
        time.sleep(0.5)  # the loop is late to hear of the result, and no worker is to blame
        report = await events.next()
        assert isinstance(report, Finished)
        assert report.started is not None
        assert report.ended is not None
        assert before <= report.started < report.ended <= time.monotonic()


async def test_large_rows_arrive_whole(tmp_path: Path) -> None:
    size = 1_000_000
    weights = np.zeros((size, 1), np.float32)
    weights[[0, size // 2, -1]] = 1
    linear_model(tmp_path / "m.onnx", (size,), (1,), weights)
    rows = np.arange(2 * size, dtype=np.float32).reshape(2, size)
    async with running(tmp_path / "m.onnx") as (engine, events):
        engine.run("0", 1, "deployed", list(rows))
        np.testing.assert_allclose(await events.outputs(1), rows @ weights)


async def test_outputs_that_are_not_what_the_model_promised_fail_the_unit(tmp_path: Path) -> None:
    shrinking_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx") as (engine, events):
        engine.run("0", 1, "deployed", [row(-1, 0), row(1, 0)])
        assert "gave float32 [1, 2] for 2 rows" in await events.failure(1)


async def test_rows_and_works_that_do_not_fit_fail_the_unit(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx") as (engine, events):
        for unit, (role, bad, reason) in enumerate(
            [
                ("deployed", row(0, 0, 0), r"got float32 [3]"),
                ("deployed", np.zeros(2, np.int32), r"got int32 [2]"),
                ("parity-0", row(0, 0), "instance 0 does not run parity-0"),
            ]
        ):
            engine.run("0", unit, role, [row(0, 0), bad])
            assert reason in await events.failure(unit)
        engine.run("0", 9, "deployed", [row(0, 1)])
        assert (await events.outputs(9)).shape == (1, 2)


@pytest.mark.parametrize("running_for", [0.0, 0.05])
async def test_a_cancelled_unit_ends_early_and_is_reported(
    tmp_path: Path, running_for: float
) -> None:
    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx") as (engine, events):
        engine.run("0", 1, "deployed", [row(0, FOREVER)])
        await asyncio.sleep(running_for)
        engine.cancel("0", 1)
        assert await events.failure(1) == "cancelled"
        engine.run("0", 2, "deployed", [row(0, 5)])
        assert (await events.outputs(2)).shape == (1, 2)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_one_event_loop_is_as_good_as_another(
    tmp_path: Path, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    async def life() -> None:
        async with running(tmp_path / "m.onnx", [DEPLOYED, DEPLOYED]) as (engine, events):
            engine.run("0", 1, "deployed", [row(0, FOREVER)])
            engine.run("1", 2, "deployed", [row(0, FOREVER)])
            os.kill(engine.pids()["0"], signal.SIGKILL)
            await events.departure("0")
            engine.cancel("1", 2)
            await events.failure(2)
            assert await events.next() == Joined("0.1", DEPLOYED)
            for unit in range(3, 100):
                engine.run("0.1", unit, "deployed", [row(0, unit)])
                assert (await events.outputs(unit))[0, 1] == unit

    moody_model(tmp_path / "m.onnx")
    run(life())


async def test_workers_leave_it_to_the_engine_to_obey_signals(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx") as (engine, events):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(engine.pids()["0"], number)
        engine.run("0", 1, "deployed", [row(0, 5)])
        assert (await events.outputs(1)).shape == (1, 2)


async def test_a_listener_that_raises_hears_of_the_next_unit_all_the_same(tmp_path: Path) -> None:
    class Touchy(Events):
        def unit_finished(self, unit: int, outputs: NDArray[Any], **stamps: float | None) -> None:
            super().unit_finished(unit, outputs, **stamps)
            raise RuntimeError("not today")

    moody_model(tmp_path / "m.onnx")
    metrics = Metrics()
    engine = LocalEngine({"deployed": PinnedModel.of(tmp_path / "m.onnx")}, metrics=metrics)
    events = Touchy()
    await engine.start([DEPLOYED, DEPLOYED], events)
    assert {type(await events.next()), type(await events.next())} == {Joined}
    for instance in ("0", "1"):
        engine.run(instance, int(instance), "deployed", [row(0, 5)])
    assert {type(await events.next()), type(await events.next())} == {Finished}
    assert engine.running() == {"0": None, "1": None}
    await engine.stop()
    assert metrics.registry.get_sample_value("parm_engine_errors_total", {"doing": "report"}) == 2


async def test_reports_that_cannot_be_read_stop_nothing(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    here = [Placement(link=Addresses("127.0.0.1", "127.0.0.1"))]
    metrics, endpoints = Metrics(), []

    def worker(*arguments: Any, reports: str, **options: Any) -> WorkerProcess:
        endpoints.append(reports)
        return WorkerProcess(*arguments, reports=reports, **options)

    options: dict[str, Any] = {"placements": here, "metrics": metrics, "worker": worker}
    async with running(tmp_path / "m.onnx", **options) as (engine, events):
        (endpoint,) = endpoints
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.connect(endpoint)
            engine.run("0", 1, "deployed", [row(0, FOREVER)])
            for frames in [
                [b"nonsense"],
                [b""],
                [encode(Heartbeat("nobody"))],
                [encode(WorkerFinished("0", 99, 0.0, 0.0)), b"12345678"],
                [encode(WorkerFailed("0", 99, "no"))],
                [encode(WorkerFinished("0", 1, 0.0, 0.0)), b"123"],  # no two floats
            ]:
                socket.send_multipart(frames)
            assert "its outputs cannot be read" in await events.failure(1)
        assert events.nothing_more()
        counted = metrics.registry.get_sample_value
        assert counted("parm_messages_refused_total", {"why": "malformed"}) == 3


async def test_faults_slow_units_from_their_start_on_and_outlive_a_restart(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    loop = asyncio.get_running_loop()
    async with running(tmp_path / "m.onnx", allows_faults=True) as (engine, events):
        engine.inject_faults(FaultPlan(service_time=Constant(0.05), kills=(Kill(0, 0.0),)))
        assert await events.departure("0") == "was killed by the fault plan"
        assert await events.next() == Joined("0.1", DEPLOYED)
        # The plan was sent to the worker before it joined, on its way since.
        while True:
            began = loop.time()
            engine.run("0.1", 1, "deployed", [row(0, 0)])
            await events.outputs(1)
            if loop.time() - began >= 0.05:
                break
        with pytest.raises(FaultPlanError, match="names worker 1, but there are 1"):
            engine.inject_faults(FaultPlan(kills=(Kill(1, 0.0),)))


async def test_an_engine_that_was_not_started_for_faults_takes_none(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    metrics, workers = Metrics(), []

    def made(*arguments: Any, **options: Any) -> WorkerProcess:
        workers.append(WorkerProcess(*arguments, **options))
        return workers[-1]

    async with running(tmp_path / "m.onnx", metrics=metrics, worker=made) as (engine, events):
        with pytest.raises(FaultPlanError, match="was not started for faults"):
            engine.inject_faults(FaultPlan(service_time=Constant(3600.0)))
        # Nor does its worker, even by the pipes that only the engine has.
        (worker,) = workers
        for message in (
            InjectFaults(FaultPlan(service_time=Constant(3600.0)), 0, 0.0),
            Lease("thief", "tcp://127.0.0.1:1"),
        ):
            worker.tell_before_units(message)
            worker.tell(message)  # type: ignore[arg-type]  # which no engine does
        refused = metrics.registry.get_sample_value
        while refused("parm_messages_refused_total", {"why": "malformed"}) != 4:
            await asyncio.sleep(0.05)
        engine.run("0", 1, "deployed", [row(0, 5)])
        await events.outputs(1)


def test_workers_start_one_after_the_other_where_they_are_to(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")

    async def run() -> None:
        model = PinnedModel.of(tmp_path / "m.onnx")
        engine = LocalEngine({"deployed": model}, **PATIENT, starts_at_once=1)
        starting = asyncio.create_task(engine.start([DEPLOYED] * 3, Events()))
        most = 0
        while not starting.done():
            most = max(most, len(engine.pids()) - len(engine.running()))
            await asyncio.sleep(0.001)
        assert len(engine.running()) == 3
        assert most == 1
        await engine.stop()
        stopped = LocalEngine({"deployed": model}, **PATIENT, starts_at_once=1)
        starting = asyncio.create_task(stopped.start([DEPLOYED] * 3, Events()))
        while not stopped.pids():
            await asyncio.sleep(0.001)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not stopped.pids()

    asyncio.run(run())
