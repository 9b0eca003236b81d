"""What workers start with is what was checked, and nothing is left of them."""

import asyncio
import errno
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import pytest

from engine_conformance import (
    BOTH,
    DEPLOYED,
    Events,
    row,
)
from local_engines import FOREVER, running
from onnx_models import linear_model, moody_model
from parity_models.errors import ModelError, ServingError
from parity_models.models.pinned_model import PinnedModel
from parity_models.serving.local.local_engine import LocalEngine
from parity_models.serving.worker.models import load
from parity_models.serving.worker.wire import AssignedModel

pytestmark = pytest.mark.slow


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


class TooLarge(PinnedModel):
    """A model for which the disk has no room."""

    def copy_to(self, file: IO[bytes]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    engine = LocalEngine({"deployed": TooLarge.of(tmp_path / "m.onnx")})
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


async def test_what_cannot_be_started_is_refused(tmp_path: Path, temporary: Path) -> None:
    moody_model(tmp_path / "m.onnx")
    with pytest.raises(ServingError, match="at least one instance"):
        await LocalEngine({"deployed": PinnedModel.of(tmp_path / "m.onnx")}).start([], Events())
    with pytest.raises(ServingError, match="no model was given to run as parity-0"):
        await LocalEngine({"deployed": PinnedModel.of(tmp_path / "m.onnx")}).start([BOTH], Events())
    temporary.rmdir()
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
