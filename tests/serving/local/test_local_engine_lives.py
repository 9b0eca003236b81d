"""Workers start with what was checked, are replaced when they end, and nothing is left of them."""

import asyncio
import errno
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from engine_conformance import (
    BOTH,
    DEPLOYED,
    Events,
    Joined,
    row,
)
from local_engines import FOREVER, running
from onnx_models import linear_model, moody_model
from parity_models.errors import ModelError, ServingError
from parity_models.models.onnx_model import PinnedModel
from parity_models.serving.backoff import FIRST, LONG_RUN, LONGEST, Backoff
from parity_models.serving.local.local_engine import LocalEngine, WorkerProcess

pytestmark = pytest.mark.slow


async def test_a_silent_worker_is_replaced(model: Path) -> None:
    async with running(model, heartbeat_timeout=1.0) as (engine, events):
        os.kill(engine.pids()["0"], signal.SIGSTOP)
        assert await events.departure("0") == "was not heard from for 1 s"
        assert await events.next() == Joined("0.1", DEPLOYED)


async def test_a_worker_with_a_hung_unit_is_replaced(model: Path) -> None:
    async with running(model, unit_timeout=0.5) as (engine, events):
        engine.run("0", 1, "deployed", [row(0, FOREVER)])
        assert await events.departure("0") == "had unit 1 for more than 0.5 s"
        assert await events.next() == Joined("0.1", DEPLOYED)


TOO_MANY = OSError(errno.EMFILE, "Too many open files")


def no_sockets(errors: list[Exception]) -> type[WorkerProcess]:
    """Workers for which the system has no sockets, as often as there are `errors`."""

    class Lacking(WorkerProcess):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            if errors:
                raise errors.pop(0)
            super().__init__(*arguments, **options)

    return Lacking


def no_process(errors: list[Exception]) -> type[WorkerProcess]:
    """Likewise, no processes."""

    class Lacking(WorkerProcess):
        async def live(self) -> str:
            if errors:
                raise errors.pop(0)
            return await super().live()

    return Lacking


def no_memory(errors: list[Exception]) -> type[WorkerProcess]:
    """Likewise, no memory, which shows when they have joined."""

    class Lacking(WorkerProcess):
        async def live(self) -> str:
            if not errors:
                return await super().live()
            living = asyncio.create_task(super().live())
            while not self.joined:
                await asyncio.sleep(0.01)
            living.cancel()
            raise errors.pop(0)

    return Lacking


@pytest.mark.parametrize(
    ("lacking", "lacks"),
    [
        (no_sockets, [TOO_MANY, MemoryError()]),
        (no_process, [TOO_MANY, BlockingIOError()]),
        (no_memory, [MemoryError()]),
    ],
)
async def test_a_worker_that_cannot_be_replaced_is_tried_again_and_again(
    model: Path,
    lacking: Callable[[list[Exception]], type[WorkerProcess]],
    lacks: list[Exception],
) -> None:
    errors: list[Exception] = []
    async with running(model, worker=lacking(errors)) as (engine, events):
        errors += lacks
        os.kill(engine.pids()["0"], signal.SIGKILL)
        await events.departure("0")
        joined = await events.arrival()
        if lacking is no_memory:  # this one had joined when it failed
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


async def test_workers_run_the_pinned_content_after_the_file_changes(tmp_path: Path) -> None:
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


class TooLarge(PinnedModel):
    """A model for which the disk has no room."""

    def copy_to(self, file: IO[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_full_disk_is_explained(model: Path) -> None:
    engine = LocalEngine({"deployed": TooLarge.of(model)})
    with pytest.raises(ServingError, match="No space left on device; set TMPDIR"):
        await engine.start([DEPLOYED], Events())


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


async def test_what_cannot_be_started_is_refused(model: Path, temporary: Path) -> None:
    with pytest.raises(ServingError, match="at least one instance"):
        await LocalEngine({"deployed": PinnedModel.of(model)}).start([], Events())
    with pytest.raises(ServingError, match="no model was given to run as parity-0"):
        await LocalEngine({"deployed": PinnedModel.of(model)}).start([BOTH], Events())
    temporary.rmdir()
    with pytest.raises(ServingError, match="No such file or directory; set TMPDIR"):
        await LocalEngine({"deployed": PinnedModel.of(model)}).start([DEPLOYED], Events())


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


async def test_a_start_that_is_cancelled_leaves_nothing_behind(
    model: Path, temporary: Path
) -> None:
    engine = LocalEngine({"deployed": PinnedModel.of(model)})
    start = asyncio.create_task(engine.start([DEPLOYED] * 2, Events()))
    while not engine.pids():
        await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not engine.pids()
    assert not list(temporary.iterdir())


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
