"""The local engine runs units on worker processes, as an engine should."""

import asyncio
import os
import signal
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from numpy.typing import NDArray

from engine_conformance import (
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
from onnx_models import moody_model, shrinking_model
from parity_models.emulation import Constant, FaultPlan, Kill
from parity_models.errors import FaultPlanError, ServingError
from parity_models.models.onnx_model import PinnedModel
from parity_models.models.signature import Signature, TensorSpec
from parity_models.serving.engine import Engine, Placement
from parity_models.serving.local.local_engine import LocalEngine, WorkerProcess
from parity_models.serving.metrics import Metrics
from parity_models.serving.worker.runner import Device
from parity_models.serving.worker.wire import Assignment, Heartbeat, Hello, WorkerStream, encode
from parity_models.serving.worker.wire import Failed as WorkerFailed
from parity_models.serving.worker.wire import Finished as WorkerFinished
from served import until

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


async def test_a_finished_unit_says_when_its_worker_ran_it(model: Path) -> None:
    async with running(model) as (engine, events):
        before = time.monotonic()
        engine.run("0", 1, "deployed", [row(0, SLOW)])
        time.sleep(0.5)  # the loop is late to hear of the result, and no worker is to blame
        report = await events.next()
        assert isinstance(report, Finished)
        assert report.ended is not None
        assert before <= report.ended <= time.monotonic()


async def test_outputs_that_do_not_fit_the_signature_fail_the_unit(tmp_path: Path) -> None:
    shrinking_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx") as (engine, events):
        engine.run("0", 1, "deployed", [row(-1, 0), row(1, 0)])
        assert "gave float32 [1, 2] for 2 rows" in await events.failure(1)


@pytest.mark.parametrize("running_for", [0.0, 0.05])
async def test_a_cancelled_unit_ends_early_and_is_reported(model: Path, running_for: float) -> None:
    async with running(model) as (engine, events):
        engine.run("0", 1, "deployed", [row(0, FOREVER)])
        await asyncio.sleep(running_for)
        engine.cancel("0", 1)
        assert await events.failure(1) == "cancelled"
        engine.run("0", 2, "deployed", [row(0, 5)])
        assert (await events.outputs(2)).shape == (1, 2)


async def test_workers_ignore_signals(model: Path) -> None:
    async with running(model) as (engine, events):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(engine.pids()["0"], number)
        engine.run("0", 1, "deployed", [row(0, 5)])
        assert (await events.outputs(1)).shape == (1, 2)


async def test_a_listener_that_raises_gets_the_next_report(model: Path) -> None:
    class Touchy(Events):
        def unit_finished(self, unit: int, outputs: NDArray[Any], **stamps: float | None) -> None:
            super().unit_finished(unit, outputs, **stamps)
            raise RuntimeError("not today")

    metrics = Metrics()
    engine = LocalEngine(models(model), metrics=metrics)
    events = Touchy()
    await engine.start([DEPLOYED, DEPLOYED], events)
    assert {type(await events.next()), type(await events.next())} == {Joined}
    for instance in ("0", "1"):
        engine.run(instance, int(instance), "deployed", [row(0, 5)])
    assert {type(await events.next()), type(await events.next())} == {Finished}
    assert engine.running() == {"0": None, "1": None}
    await engine.stop()
    assert metrics.registry.get_sample_value("parm_engine_errors_total", {"doing": "report"}) == 2


class Impostor:
    """What a worker's process could send: the process that is started instead does nothing."""

    def __init__(self) -> None:
        self.ends: list[WorkerStream] = []
        self.worker = partial(WorkerProcess, execute=self._execute)

    async def _execute(self, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
        assigned = msgspec.json.decode(arguments[-1], type=Assignment)
        assert assigned.streams is not None
        units, control = (WorkerStream(socket.socket(fileno=os.dup(fd))) for fd in assigned.streams)
        self.ends = [units, control]
        model = TensorSpec("x", "FP32", (2,))
        units.send([encode(Hello({"deployed": Signature.of(model, model)}))])
        return await asyncio.create_subprocess_exec("sleep", "1000", **options)


async def test_reports_of_other_units_are_ignored_and_a_malformed_one_ends_the_worker(
    model: Path,
) -> None:
    impostor, metrics = Impostor(), Metrics()
    options: dict[str, Any] = {"metrics": metrics, "worker": impostor.worker}
    async with running(model, **options) as (engine, events):
        engine.run("0", 1, "deployed", [row(0, 0)])
        units, control = impostor.ends
        units.send([encode(WorkerFinished(99, 0.0)), b"12345678"])
        units.send([encode(WorkerFailed(99, "no"))])
        control.send([encode(Heartbeat())])
        units.send([encode(WorkerFinished(1, 0.0)), b"123"])  # not two floats
        assert "its outputs cannot be read" in await events.failure(1)
        assert events.nothing_more()
        for life, malformed in enumerate([[b"nonsense"], [encode(Heartbeat()), b"tensor"]]):
            engine.run("0" if not life else f"0.{life}", 2, "deployed", [row(0, 0)])
            impostor.ends[life].send(malformed)
            assert "sent " in await events.departure("0" if not life else f"0.{life}")
            await events.arrival()
        counted = metrics.registry.get_sample_value
        assert counted("parm_messages_refused_total", {"why": "malformed"}) == 3


async def test_faults_slow_units_from_their_start_on_and_outlive_a_restart(model: Path) -> None:
    loop = asyncio.get_running_loop()
    async with running(model, allows_faults=True) as (engine, events):
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


async def test_workers_start_one_at_a_time_if_told_to(model: Path) -> None:
    engine = LocalEngine(models(model), **PATIENT, starts_at_once=1)
    starting = asyncio.create_task(engine.start([DEPLOYED] * 3, Events()))
    most = 0
    while not starting.done():
        most = max(most, len(engine.pids()) - len(engine.running()))
        await asyncio.sleep(0.001)
    assert len(engine.running()) == 3
    assert most == 1
    await engine.stop()

    stopped = LocalEngine(models(model), **PATIENT, starts_at_once=1)
    starting = asyncio.create_task(stopped.start([DEPLOYED] * 3, Events()))
    while not stopped.pids():
        await asyncio.sleep(0.001)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not stopped.pids()


def models(path: Path) -> dict[str, PinnedModel]:
    return {"deployed": PinnedModel.of(path)}


async def test_workers_with_a_link_use_tcp(model: Path) -> None:
    linked = [Placement(link="127.0.0.1", node="rack 7"), Placement()]
    engine, events = LocalEngine(models(model), **PATIENT, placements=linked), Events()
    await engine.start([DEPLOYED] * 2, events)
    nodes = {each.instance: each.node for each in [await events.arrival() for _ in linked]}
    assert nodes == {"0": "rack 7", "1": None}
    engine.run("0", 1, "deployed", [row(0, FOREVER)])
    engine.cancel("0", 1)
    assert await events.failure(1) == "cancelled"
    os.kill(engine.pids()["0"], signal.SIGKILL)
    await events.departure("0")
    joined = await events.arrival()
    engine.run(joined.instance, 2, "deployed", [row(0, 5)])
    await events.outputs(2)
    await engine.stop()


@pytest.mark.parametrize(
    ("placements", "why"),
    [
        ([Placement(link="198.18.0.1")], r"cannot listen at 198\.18\.0\.1"),
        ([Placement()] * 2, "2 placements for 1 instances"),
        ([Placement(("no-such-command",))], "could not be run: FileNotFoundError"),
    ],
)
async def test_placements_that_cannot_be_are_refused(
    model: Path, placements: list[Placement], why: str
) -> None:
    with pytest.raises(ServingError, match=why):
        await LocalEngine(models(model), placements=placements).start([DEPLOYED], Events())


async def test_workers_wait_for_the_device_that_they_share(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "device"
    shared = [Placement(device=str(path))] * 2
    async with running(model, [DEPLOYED] * 2, placements=shared) as (engine, events):
        with Device(str(path)):
            for instance in "01":
                engine.run(instance, int(instance), "deployed", [row(0, 5)])
            await asyncio.to_thread(
                until, lambda: waiting_for(path) == 2, "they do not both wait for the device"
            )
            assert events.nothing_more()
        reports = [await events.next() for _ in shared]
        assert all(isinstance(each, Finished) for each in reports)


def waiting_for(path: Path) -> int:
    """How many processes wait for the lock on a file."""
    locks = Path("/proc/locks").read_text().splitlines()
    return sum(" -> FLOCK" in lock and f":{path.stat().st_ino} " in lock for lock in locks)
