"""Workers that die, hang or are recycled are replaced, whatever is lacking."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from engine_conformance import (
    BOTH,
    DEPLOYED,
    Joined,
    row,
)
from local_engines import FOREVER, running
from onnx_models import moody_model
from parity_models.serving.backoff import FIRST, LONG_RUN, LONGEST, Backoff
from parity_models.serving.local.process import WorkerProcess

pytestmark = pytest.mark.slow


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
    tmp_path: Path,
    lacking: Callable[[list[Exception]], type[WorkerProcess]],
    lacks: list[Exception],
) -> None:
    moody_model(tmp_path / "m.onnx")
    errors: list[Exception] = []
    async with running(tmp_path / "m.onnx", worker=lacking(errors)) as (engine, events):
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


async def test_a_process_that_nobody_took_notice_of_exits(
    tmp_path: Path,
) -> None:
    begun: list[asyncio.subprocess.Process] = []

    async def second_unwatched(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(*arguments, **options)
        begun.append(process)
        if len(begun) == 2:
            raise OSError(errno.EMFILE, "no descriptor to watch the process by")
        return process

    moody_model(tmp_path / "m.onnx")
    worker = partial(WorkerProcess, execute=second_unwatched)
    async with running(tmp_path / "m.onnx", worker=worker) as (engine, events):
        os.kill(engine.pids()["0"], signal.SIGKILL)
        await events.departure("0")
        assert (await events.arrival()).instance == "0.2"
        async with asyncio.timeout(60):
            assert await begun[1].wait() == 0
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
