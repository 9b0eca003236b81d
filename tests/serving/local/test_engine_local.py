"""The local engine runs units on worker processes, and outlives them."""

import asyncio
import errno
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import uvloop
import zmq
from numpy.typing import NDArray

from engine_conformance import (
    BOTH,
    DEPLOYED,
    EngineConformance,
    Events,
    Finished,
    Fleet,
    Joined,
    row,
)
from local_engines import FOREVER, PATIENT, running
from onnx_models import linear_model, moody_model, shrinking_model
from parity_models.errors import FaultPlanError, ModelError, ServingError
from parity_models.faults import Constant, FaultPlan, Kill
from parity_models.models.pinned_model import PinnedModel
from parity_models.serving.backoff import FIRST, LONG_RUN, LONGEST, Backoff
from parity_models.serving.engine import Engine
from parity_models.serving.local.engine import LocalEngine
from parity_models.serving.local.placement import Link, Placement
from parity_models.serving.local.process import WorkerProcess
from parity_models.serving.metrics import Metrics
from parity_models.serving.worker.models import load
from parity_models.serving.worker.wire import (
    AssignedModel,
    Heartbeat,
    InjectFaults,
    Lease,
    encode,
)
from parity_models.serving.worker.wire import Failed as WorkerFailed
from parity_models.serving.worker.wire import Finished as WorkerFinished


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's engines would put temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


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
        for instance, work in [("0", "deployed"), ("1", "deployed"), ("1", "parity-0")]:
            for size in (1, 3, 8, 2, 1):
                unit += 1
                engine.run(instance, unit, work, list(rows[:size]))
                outputs = await events.outputs(unit)
                expected = (rows[:size].reshape(size, -1) @ weights).reshape(size, 2, 5)
                assert outputs.dtype == np.float32
                np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


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
        for unit, (work, bad, reason) in enumerate(
            [
                ("deployed", row(0, 0, 0), r"got float32 [3]"),
                ("deployed", np.zeros(2, np.int32), r"got int32 [2]"),
                ("parity-0", row(0, 0), "instance 0 does not run parity-0"),
            ]
        ):
            engine.run("0", unit, work, [row(0, 0), bad])
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


async def test_a_killed_worker_is_replaced_and_its_unit_not_heard_of(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx", [DEPLOYED, BOTH]) as (engine, events):
        for before, after in [("1", "1.1"), ("1.1", "1.2")]:
            engine.run(before, 1, "deployed", [row(0, FOREVER)])
            os.kill(engine.pids()[before], signal.SIGKILL)
            assert "signal 9" in await events.departure(before)
            engine.run(before, 2, "deployed", [row(0, 5)])
            assert await events.next() == Joined(after, BOTH)
        engine.run("1.2", 3, "parity-0", [row(0, 5)])
        assert (await events.outputs(3)).shape == (1, 2)


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


async def test_a_worker_that_is_not_heard_of_is_replaced(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx", heartbeat_timeout=1.0) as (engine, events):
        os.kill(engine.pids()["0"], signal.SIGSTOP)
        assert await events.departure("0") == "was not heard of for 1 s"
        assert await events.next() == Joined("0.1", DEPLOYED)


async def test_a_worker_with_a_hung_unit_is_replaced(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx", unit_timeout=0.5) as (engine, events):
        engine.run("0", 1, "deployed", [row(0, FOREVER)])
        assert await events.departure("0") == "had unit 1 for more than 0.5 s"
        assert await events.next() == Joined("0.1", DEPLOYED)


async def test_a_worker_that_cannot_be_replaced_is_tried_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is lacking: sockets, a process, or memory while it runs."""
    live, make = WorkerProcess.live, WorkerProcess.__init__
    lacking: list[Exception] = []

    def fail(*_: Any) -> None:
        if lacking:
            raise lacking.pop(0)

    def no_sockets(self: WorkerProcess, *arguments: Any, **options: Any) -> None:
        fail()
        make(self, *arguments, **options)

    async def no_process(self: WorkerProcess) -> str:
        fail()
        return await live(self)

    async def no_memory(self: WorkerProcess) -> str:
        living = asyncio.create_task(live(self))
        while not self.joined:
            await asyncio.sleep(0.01)
        if not lacking:
            return await living
        living.cancel()
        raise lacking.pop(0)

    monkeypatch.setattr("parity_models.serving.backoff.LONGEST", 0.2)
    moody_model(tmp_path / "m.onnx")
    too_many = OSError(errno.EMFILE, "Too many open files")
    instance = "0"
    cases: list[tuple[str, Callable[..., Any], list[Exception]]] = [
        ("__init__", no_sockets, [too_many, MemoryError()]),
        ("live", no_process, [OSError(errno.EMFILE, "Too many"), BlockingIOError()]),
        ("live", no_memory, [MemoryError()]),
    ]
    async with running(tmp_path / "m.onnx") as (engine, events):
        for name, broken, errors in cases:
            with monkeypatch.context() as patch:
                lacking.extend(errors)
                patch.setattr(WorkerProcess, name, broken)
                os.kill(engine.pids()[instance], signal.SIGKILL)
                await events.departure(instance)
                joined = await events.next()
                if broken is no_memory:  # this one had joined when it failed
                    assert isinstance(joined, Joined)
                    assert "could not be run" in await events.departure(joined.instance)
                    joined = await events.next()
                assert isinstance(joined, Joined)
                assert not lacking
                instance = joined.instance
                engine.run(instance, 1, "deployed", [row(0, 5)])
                await events.outputs(1)
                assert list(engine.pids()) == [instance]


async def test_a_process_that_nobody_took_notice_of_exits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = asyncio.create_subprocess_exec
    strays: list[asyncio.subprocess.Process] = []

    async def unwatched(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await make(*arguments, **options)
        if not strays:
            strays.append(process)
            raise OSError(errno.EMFILE, "no descriptor to watch the process by")
        return process

    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx") as (engine, events):
        monkeypatch.setattr(asyncio, "create_subprocess_exec", unwatched)
        os.kill(engine.pids()["0"], signal.SIGKILL)
        await events.departure("0")
        assert (await events.arrival()).instance == "0.2"
        async with asyncio.timeout(60):
            assert await strays[0].wait() == 0
        assert events.nothing_more()


def test_without_descriptors_a_worker_is_back_as_soon_as_there_are_some(
    tmp_path: Path, temporary: Path
) -> None:
    moody_model(tmp_path / "m.onnx")
    script = """
import asyncio, os, pathlib, resource, signal, sys, time, uvloop
import engine_conformance as e, local_engines as t

def take(hogs):
    try:
        while True:
            hogs.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return hogs

async def main():
    async with t.running(pathlib.Path(sys.argv[1]), [e.DEPLOYED] * 2) as (engine, events):
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        hogs = take([])
        os.kill(engine.pids()["0"], signal.SIGKILL)
        await events.departure("0")
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            take(hogs)
            await asyncio.sleep(0.003)
        engine.run("1", 1, "deployed", [e.row(0, 5)])
        await events.outputs(1)
        assert events.nothing_more()
        for hog in hogs:
            os.close(hog)
        joined = await events.arrival()
        engine.run(joined.instance, 2, "deployed", [e.row(0, 5)])
        await events.outputs(2)
        assert sorted(engine.pids()) == sorted(["1", joined.instance])
        children = pathlib.Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
        assert len(children.read_text().split()) == 2
{asyncio.__name__}.run(main())
"""
    for loop in ("asyncio", "uvloop"):
        subprocess.run(
            [sys.executable, "-c", script.replace("{asyncio.__name__}", loop), tmp_path / "m.onnx"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)},
            check=True,
            timeout=120,
        )


# What runs is what was checked


async def test_workers_run_what_was_pinned_whatever_becomes_of_the_file(tmp_path: Path) -> None:
    def replace(path: Path) -> None:
        linear_model(tmp_path / "other.onnx", (2,), (2,), np.full((2, 2), 7, np.float32))
        (tmp_path / "other.onnx").replace(path)

    def overwrite(path: Path) -> None:
        linear_model(path, (2,), (2,), np.full((2, 2), 7, np.float32))

    changes: list[Callable[[Path], None]] = [replace, overwrite, Path.unlink]
    for number, change in enumerate(changes):
        model = tmp_path / f"{number}.onnx"
        linear_model(model, (2,), (2,), np.eye(2, dtype=np.float32))
        async with running(model) as (engine, events):
            change(model)
            os.kill(engine.pids()["0"], signal.SIGKILL)
            await events.departure("0")
            joined = await events.arrival()
            engine.run(joined.instance, 1, "deployed", [row(3, 5)])
            np.testing.assert_array_equal(await events.outputs(1), [[3, 5]])


async def test_a_model_that_was_changed_since_it_was_checked_is_not_started(
    tmp_path: Path, temporary: Path
) -> None:
    moody_model(tmp_path / "m.onnx")
    engine = LocalEngine({"deployed": PinnedModel.of(tmp_path / "m.onnx")})
    linear_model(tmp_path / "m.onnx", (2,), (2,))
    with pytest.raises(ModelError, match=r"m.onnx was changed since it was checked: its sha256"):
        await engine.start([DEPLOYED], Events())
    assert not list(temporary.iterdir())


def test_a_worker_loads_nothing_but_what_it_was_assigned(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    with (tmp_path / "m.onnx").open("rb") as file:
        good = AssignedModel(
            file.fileno(), PinnedModel.of(tmp_path / "m.onnx").sha256, "deployed (m.onnx)"
        )
        for _ in range(2):
            assert load(good).input.shape == (2,)
        with pytest.raises(ModelError, match=r"deployed \(m.onnx\) was changed since"):
            load(msgspec.structs.replace(good, sha256="0" * 64))


async def test_a_full_disk_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    moody_model(tmp_path / "m.onnx")
    monkeypatch.setattr(PinnedModel, "copy_to", full)
    with pytest.raises(ServingError, match="No space left on device; set TMPDIR"):
        await LocalEngine({"deployed": PinnedModel.of(tmp_path / "m.onnx")}).start(
            [DEPLOYED], Events()
        )


async def test_an_instance_that_is_recycled_again_and_again_is_kept_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx") as (engine, events):
        instance = "0"
        for _ in range(3):
            await asyncio.sleep(LONG_RUN / 2)
            engine.recycle(instance, "answered wrongly")
            assert await events.departure(instance) == "answered wrongly"
            instance = (await events.arrival()).instance
    pauses = [
        record.args[-1]
        for record in caplog.records
        if "is restarted in" in record.msg and isinstance(record.args, tuple)
    ]
    assert pauses == [FIRST, 2 * FIRST, 4 * FIRST]


def test_the_pause_before_a_restart_grows_until_a_run_was_long() -> None:
    backoff = Backoff()
    pauses = [backoff.after(0.5) for _ in range(20)]
    assert pauses[0] == FIRST
    assert all(later == min(2 * earlier, LONGEST) for earlier, later in pairwise(pauses))
    assert pauses[-1] == LONGEST
    assert backoff.after(LONG_RUN) == FIRST
    assert backoff.after(0.5) == 2 * FIRST


async def test_workers_leave_it_to_the_engine_to_obey_signals(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx") as (engine, events):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(engine.pids()["0"], number)
        engine.run("0", 1, "deployed", [row(0, 5)])
        assert (await events.outputs(1)).shape == (1, 2)


async def test_a_listener_that_raises_hears_of_the_next_unit_all_the_same(tmp_path: Path) -> None:
    class Touchy(Events):
        def unit_finished(self, unit: int, outputs: NDArray[Any]) -> None:
            super().unit_finished(unit, outputs)
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
    here = [Placement(link=Link("127.0.0.1", "127.0.0.1"))]
    async with running(tmp_path / "m.onnx", placements=here) as (engine, events):
        (endpoint,) = engine._endpoints.values()
        with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
            socket.connect(endpoint)
            engine.run("0", 1, "deployed", [row(0, FOREVER)])
            for frames in [
                [b"nonsense"],
                [b""],
                [encode(Heartbeat("nobody"))],
                [encode(WorkerFinished("0", 99)), b"12345678"],
                [encode(WorkerFailed("0", 99, "no"))],
                [encode(WorkerFinished("0", 1)), b"123"],  # no two floats
            ]:
                socket.send_multipart(frames)
            assert "its outputs cannot be read" in await events.failure(1)
        assert events.nothing_more()
        assert (
            engine._metrics.registry.get_sample_value(
                "parm_messages_refused_total", {"why": "malformed"}
            )
            == 3
        )


async def test_a_worker_that_cannot_start_is_an_error_with_its_last_words(
    tmp_path: Path, temporary: Path
) -> None:
    moody_model(tmp_path / "good.onnx")
    (tmp_path / "bad.onnx").write_bytes((tmp_path / "good.onnx").read_bytes()[:-30])
    models = {
        "deployed": PinnedModel.of(tmp_path / "good.onnx"),
        "parity-0": PinnedModel.of(tmp_path / "bad.onnx"),
    }
    engine = LocalEngine(models)
    with pytest.raises(ServingError, match="is it a complete ONNX file") as error:
        await engine.start([DEPLOYED, BOTH, DEPLOYED], Events())
    assert "worker 1" in str(error.value)
    assert "bad.onnx" in str(error.value)
    assert not engine.pids()
    assert not list(temporary.iterdir())
    (tmp_path / "bad.onnx").unlink()
    with pytest.raises(ModelError, match=r"cannot read .*bad.onnx"):
        await LocalEngine(models).start([DEPLOYED, BOTH, DEPLOYED], Events())
    assert not list(temporary.iterdir())


async def test_what_cannot_be_started_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moody_model(tmp_path / "m.onnx")
    with pytest.raises(ServingError, match="at least one instance"):
        await LocalEngine({"deployed": PinnedModel.of(tmp_path / "m.onnx")}).start([], Events())
    with pytest.raises(ServingError, match="no model was given to run as parity-0"):
        await LocalEngine({"deployed": PinnedModel.of(tmp_path / "m.onnx")}).start([BOTH], Events())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(ServingError, match="No such file or directory; set TMPDIR"):
        await LocalEngine({"deployed": PinnedModel.of(tmp_path / "m.onnx")}).start(
            [DEPLOYED], Events()
        )


async def test_stop_leaves_nothing_behind(tmp_path: Path, temporary: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    async with running(tmp_path / "m.onnx", [DEPLOYED] * 3) as (engine, events):
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


async def test_a_start_that_is_given_up_leaves_nothing_behind(
    tmp_path: Path, temporary: Path
) -> None:
    moody_model(tmp_path / "m.onnx")
    engine = LocalEngine({"deployed": PinnedModel.of(tmp_path / "m.onnx")})
    start = asyncio.create_task(engine.start([DEPLOYED] * 2, Events()))
    while not engine.pids():
        await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not engine.pids()
    assert not list(temporary.iterdir())


def test_no_worker_outlives_a_killed_engine(tmp_path: Path, temporary: Path) -> None:
    moody_model(tmp_path / "m.onnx")
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
        [sys.executable, "-c", script, tmp_path / "m.onnx"],
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
    async with running(tmp_path / "m.onnx") as (engine, events):
        with pytest.raises(FaultPlanError, match="was not started for faults"):
            engine.inject_faults(FaultPlan(service_time=Constant(3600.0)))
        # Nor does its worker, even by the pipes that only the engine has.
        worker = engine._workers["0"]
        for message in (
            InjectFaults(FaultPlan(service_time=Constant(3600.0)), 0, 0.0),
            Lease("thief", "tcp://127.0.0.1:1"),
        ):
            worker.tell_before_units(message)
            worker.tell(message)  # type: ignore[arg-type]  # which no engine does
        refused = engine._metrics.registry.get_sample_value
        while refused("parm_messages_refused_total", {"why": "malformed"}) != 4:
            await asyncio.sleep(0.05)
        engine.run("0", 1, "deployed", [row(0, 5)])
        await events.outputs(1)
