"""The local engine runs units on worker processes, replaces those that end, and leaves nothing."""

import asyncio
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

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
from local_engines import FOREVER, local_engine, running
from onnx_models import linear_model, moody_model, shrinking_model
from parity_models.bundle.onnx_model import PinnedModel
from parity_models.errors import FaultPlanError, ModelError, ServingError
from parity_models.serving.engine import (
    FIRST,
    LONG_RUN,
    LONGEST,
    Backoff,
    Engine,
    Placement,
)
from parity_models.serving.local.local_engine import LocalEngine, WorkerProcess
from parity_models.serving.worker.wire import (
    Assignment,
    Cancel,
    Heartbeat,
    Hello,
    WorkerStream,
    encode,
)
from parity_models.serving.worker.wire import Failed as WorkerFailed
from parity_models.serving.worker.wire import Finished as WorkerFinished
from parity_models.simulation.emulation import Constant, FaultPlan, Kill
from parity_models.tensors.signature import Signature, TensorSpec

pytestmark = pytest.mark.slow


def models(path: Path) -> dict[str, PinnedModel]:
    return {"deployed": PinnedModel.of(path)}


class LocalFleet(Fleet):
    def __init__(self, model: Path) -> None:
        self._models = dict.fromkeys(("deployed", "parity-0"), PinnedModel.of(model))

    def engine(self) -> LocalEngine:
        return local_engine(self._models)

    def kill(self, engine: Engine, number: int) -> None:
        assert isinstance(engine, LocalEngine)
        os.kill(engine.pids()[str(number)], signal.SIGKILL)


class TestLocalEngine(EngineConformance):
    @pytest.fixture
    def fleet(self, tmp_path: Path) -> LocalFleet:
        moody_model(tmp_path / "m.onnx")
        return LocalFleet(tmp_path / "m.onnx")


# Units


async def test_a_finished_unit_says_when_its_worker_ran_it(model: Path) -> None:
    async with running(model) as (engine, events):
        before = time.monotonic()
        engine.run("0", 1, "deployed", [row(0, SLOW)])
        time.sleep(0.5)  # the loop is late to hear of the result, and no worker is to blame
        report = await events.expect(Finished)
        assert report.ended is not None
        assert before <= report.ended <= time.monotonic()


async def test_workers_end_before_the_server(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "PARM_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    async with running(model) as (engine, _):
        worker = Path(f"/proc/{engine.pids()['0']}")
        assert int((worker / "oom_score_adj").read_text()) == 500
        environment = (worker / "environ").read_text()
        assert "OMP_NUM_THREADS=1" in environment
        assert "secret" not in environment


async def test_outputs_that_do_not_fit_the_signature_fail_the_unit(tmp_path: Path) -> None:
    shrinking_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx") as (engine, events):
        engine.run("0", 1, "deployed", [row(-1, 0), row(1, 0)])
        assert "gave float32 [1, 2] for 2 rows" in await events.failure(1)


class Impostor:
    """Sends reports in a worker's place; the process that is started instead does nothing."""

    def __init__(self) -> None:
        self.ends: list[WorkerStream] = []
        self._execute = asyncio.create_subprocess_exec

    async def execute(self, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
        assigned = msgspec.json.decode(arguments[-1], type=Assignment)
        assert assigned.streams is not None
        control, units = (WorkerStream(socket.socket(fileno=os.dup(fd))) for fd in assigned.streams)
        self.ends = [units, control]
        model = TensorSpec("x", "FP32", (2,))
        units.send(encode(Hello({"deployed": Signature.of(model, model)})))
        return await self._execute("sleep", "1000", **options)


async def test_reports_of_other_units_are_ignored_and_malformed_ones_fatal(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    impostor = Impostor()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", impostor.execute)
    async with running(model) as (engine, events):
        engine.run("0", 1, "deployed", [row(0, 0)])
        units, control = impostor.ends
        units.send(encode(WorkerFinished(99, 0.0)), b"12345678")
        units.send(encode(WorkerFailed(99, "no")))
        control.send(encode(Heartbeat()))
        units.send(encode(WorkerFinished(1, 0.0)), b"123")  # not two floats
        assert "its outputs cannot be read" in await events.failure(1)
        assert events.nothing_more()
        for life, malformed in enumerate([b"nonsense", encode(Cancel(1))]):
            engine.run("0" if not life else f"0.{life}", 2, "deployed", [row(0, 0)])
            impostor.ends[life].send(malformed)
            assert "sent " in await events.departure("0" if not life else f"0.{life}")
            await events.arrival()


async def test_faults_slow_units_from_their_start_on_and_outlive_a_restart(model: Path) -> None:
    loop = asyncio.get_running_loop()
    async with running(model) as (engine, events):
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


# Placements


async def test_workers_with_a_link_use_tcp(model: Path) -> None:
    linked = [Placement(link="127.0.0.1", node="rack 7"), Placement()]
    engine, events = local_engine(models(model), placements=linked), Events()
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
        ([Placement(("no-such-command",))], "could not be run: FileNotFoundError"),
    ],
)
async def test_placements_are_checked(model: Path, placements: list[Placement], why: str) -> None:
    with pytest.raises(ServingError, match=why):
        await local_engine(models(model), placements=placements).start([DEPLOYED], Events())


# Starts


class TooLarge(PinnedModel):
    """A model for which the disk has no room."""

    def read(self) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_impossible_start_is_refused(model: Path, tmp_path: Path, temporary: Path) -> None:
    engine = local_engine({"deployed": PinnedModel.of(model)})
    with pytest.raises(ServingError, match="No space left on device; set TMPDIR"):
        await local_engine({"deployed": TooLarge.of(model)}).start([DEPLOYED], Events())
    linear_model(model, (2,), (2,))
    with pytest.raises(ModelError, match=r"m.onnx was changed since it was checked: its sha256"):
        await engine.start([DEPLOYED], Events())
    assert not list(temporary.iterdir())


async def test_a_failed_start_has_last_words(model: Path, tmp_path: Path, temporary: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(model.read_bytes()[:-30])
    both = {**models(model), "parity-0": PinnedModel.of(tmp_path / "bad.onnx")}
    engine = local_engine(both)
    with pytest.raises(ServingError, match="is it a complete ONNX file") as error:
        await engine.start([DEPLOYED, BOTH, DEPLOYED], Events())
    assert "worker 1" in str(error.value)
    assert "bad.onnx" in str(error.value)
    assert not engine.pids()
    assert not list(temporary.iterdir())


# Replacements


async def test_a_silent_worker_and_one_with_a_hung_unit_are_replaced(model: Path) -> None:
    async with running(model, heartbeat_timeout=3.0) as (engine, events):
        os.kill(engine.pids()["0"], signal.SIGSTOP)
        assert await events.departure("0") == "was not heard from for 3 s"
        assert await events.next() == Joined("0.1", DEPLOYED)
    async with running(model, unit_timeout=0.5) as (engine, events):
        for number in (signal.SIGINT, signal.SIGTERM):  # which it ignores
            os.kill(engine.pids()["0"], number)
        engine.run("0", 1, "deployed", [row(0, FOREVER)])
        assert await events.departure("0") == "had unit 1 for more than 0.5 s"
        assert await events.next() == Joined("0.1", DEPLOYED)


TOO_MANY = OSError(errno.EMFILE, "Too many open files")


def lacking(errors: list[Exception]) -> type[WorkerProcess]:
    """Workers that fail as often as there are `errors`; for want of memory once they have joined,
    else before they start."""

    class Lacking(WorkerProcess):
        async def live(self) -> str:
            if not errors:
                return await super().live()
            if isinstance(errors[0], MemoryError):
                living = asyncio.create_task(super().live())
                while not self.joined:
                    await asyncio.sleep(0.01)
                living.cancel()
            raise errors.pop(0)

    return Lacking


async def test_failed_replacement_is_retried(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[Exception] = []
    monkeypatch.setattr(LocalEngine, "instance_kind", lacking(errors))
    async with running(model) as (engine, events):
        errors += [TOO_MANY, BlockingIOError(), MemoryError()]
        os.kill(engine.pids()["0"], signal.SIGKILL)
        await events.departure("0")
        joined = await events.arrival()
        assert "could not be run" in await events.departure(joined.instance)
        joined = await events.arrival()
        assert not errors
        engine.run(joined.instance, 1, "deployed", [row(0, 5)])
        await events.outputs(1)
        assert list(engine.pids()) == [joined.instance]


def test_the_pause_before_a_restart_grows_until_a_run_was_long() -> None:
    backoff = Backoff()
    pauses = [backoff.after(0.5) for _ in range(20)]
    assert pauses[0] == FIRST
    assert all(later == min(2 * earlier, LONGEST) for earlier, later in pairwise(pauses))
    assert pauses[-1] == LONGEST
    assert backoff.after(LONG_RUN) == FIRST
    assert backoff.after(0.5) == 2 * FIRST


def overwrite(path: Path) -> None:
    linear_model(path, (2,), (2,), np.full((2, 2), 7, np.float32))


@pytest.mark.parametrize("change", [overwrite, Path.unlink])
async def test_workers_run_pinned_content(tmp_path: Path, change: Callable[[Path], None]) -> None:
    model = tmp_path / "m.onnx"
    linear_model(model, (2,), (2,), np.eye(2, dtype=np.float32))
    async with running(model) as (engine, events):
        change(model)
        os.kill(engine.pids()["0"], signal.SIGKILL)
        await events.departure("0")
        joined = await events.arrival()
        engine.run(joined.instance, 1, "deployed", [row(3, 5)])
        np.testing.assert_array_equal(await events.outputs(1), [[3, 5]])


# The end


async def test_stop_leaves_nothing_behind(model: Path, temporary: Path) -> None:
    async with running(model, [DEPLOYED] * 3) as (engine, events):
        engine.run("0", 1, "deployed", [row(0, FOREVER)])
        os.kill(engine.pids()["1"], signal.SIGSTOP)
        os.kill(engine.pids()["2"], signal.SIGKILL)
        await events.departure("2")
        pids = list(engine.pids().values())
        await engine.stop()
        assert events.nothing_more()
        assert not engine.pids()
        assert not list(temporary.iterdir())
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        await engine.stop()


def test_no_worker_outlives_a_killed_engine(model: Path, temporary: Path) -> None:
    script = """
import asyncio, json, pathlib, sys, local_engines as t, engine_conformance as e
async def main():
    async with t.running(pathlib.Path(sys.argv[1]), [e.DEPLOYED] * 2) as (engine, _):
        engine.run("1", 1, "deployed", [e.row(0, t.FOREVER)])
        print(json.dumps(engine.pids()), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
    engine = subprocess.Popen(
        [sys.executable, "-c", script, model],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)},
    )
    try:
        assert engine.stdout is not None
        workers = [os.pidfd_open(pid) for pid in json.loads(engine.stdout.readline()).values()]
    finally:
        engine.kill()
        engine.communicate()
    for worker in workers:
        select.select([worker], [], [])  # readable once the process has ended
        os.close(worker)
    assert not list(temporary.iterdir())
