"""`parm serve` as a child of the lab's tests of reliability."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parity_models.errors import ServingError
from parity_models_lab.reliability.serve_process import ServeProcess


@contextmanager
def ends_told_by_descriptors() -> Iterator[None]:
    """Let asyncio learn of ends of processes when its loop runs, as it always does from 3.12 on."""
    if sys.version_info >= (3, 12):
        yield
        return
    before = asyncio.get_child_watcher()
    watcher = asyncio.PidfdChildWatcher()
    watcher.attach_loop(asyncio.get_running_loop())
    asyncio.set_child_watcher(watcher)
    try:
        yield
    finally:
        asyncio.set_child_watcher(before)


def is_dead(pid: int) -> bool:
    """Has it ended, and does its exit status wait to be read?"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def test_who_is_killed_and_stopped_at_once_keeps_its_exit_status(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ends_told_by_descriptors():
        server = ServeProcess([str(tmp_path / "none")], tmp_path / "log")
        starting = asyncio.create_task(server.start())
        while not server.running:
            await asyncio.sleep(0)
        os.kill(server.pid, signal.SIGKILL)
        while not is_dead(server.pid):  # nobody is told so yet, as the loop does not run
            pass
        await server.stop()
        with pytest.raises(ServingError, match="did not start"):
            await starting
    assert not server.running
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
