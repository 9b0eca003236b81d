"""A bundle served from a process of its own, for as long as it is wanted."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from parity_models.errors import UserError
from parity_models.load.served import Computed, served
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.server import ServeOptions
from served import write_linear_bundle

pytestmark = pytest.mark.slow


def children() -> set[str]:
    """The ids of this process's children that have not ended."""
    files = Path("/proc/self/task").glob("*/children")
    return {pid for file in files for pid in file.read_text().split()}


async def test_a_server_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path)
    before = children()
    up = asyncio.Event()

    async def serve() -> None:
        async with served(bundle, ServeOptions(port=0)):
            up.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await up.wait()
    assert children() != before
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()
    assert children() == before


async def test_options_that_do_not_fit_are_refused_with_the_servers_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no bundle at"):
        async with served(tmp_path / "missing", ServeOptions(port=0)):
            pass
    uncoded = write_linear_bundle(tmp_path, coded=False)
    with pytest.raises(UserError, match="has no parity model"):
        async with served(uncoded, ServeOptions(port=0, policy=PolicyChoice("parity"))):
            pass


SPIN = """
import subprocess, sys, time
def spin(seconds):
    while time.process_time() < seconds:
        pass
"""
SERVER = f"""
{SPIN}
worker = subprocess.Popen([sys.executable, "-c", {SPIN + "spin(1.2); print(1); input()"!r}],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE)
worker.stdout.readline()
spin(0.6)
print("done", flush=True)
input()
worker.communicate(b"\\n")
"""


def test_processor_time_is_that_of_workers_and_of_all_others() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    assert Computed.until_now(ended.pid).workers == 0
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        before = Computed.until_now(server.pid)
        subprocess.run([sys.executable, "-c", SPIN + "spin(0.6)"], check=True)
        assert server.stdout.readline() == "done\n"
        took = Computed.until_now(server.pid).since(before)
        server.communicate("\n")
    assert took.workers >= 1.1
    assert took.serving >= 1.1
