"""Contention takes the same course in every run, is felt where it belongs, and leaves nothing."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from parity_models.load import LoadSpec
from parity_models.serving.server import ServeOptions
from parity_models_lab.contention import RATE, SIZES, ContentionError, check_privileges, legs
from parity_models_lab.latency.trial import Setting, contended
from parity_models_lab.processes import offer_load_from_own_process
from parity_models_lab.served import served
from served import predictions, queries, until, write_linear_bundle

# Courses


def test_each_lane_has_one_transfer_at_a_time() -> None:
    course, again, other = (list(islice(legs(18, seed, 0), 200)) for seed in (1, 1, 2))
    assert course == again != other
    assert course[0].start == 0
    assert all(before.end == after.start for before, after in pairwise(course))
    assert {leg.source for leg in course} == set(range(18))
    for out, back in zip(course[::2], course[1::2], strict=True):
        assert (out.source, out.target) == (back.target, back.source)
        assert out.source != out.target
        assert out.end - out.start == pytest.approx(back.end - back.start)
    least, most = (8 * size / RATE for size in SIZES)
    assert all(least <= leg.end - leg.start <= most + 1e-9 for leg in course[2:])


# Of a server


def needs_root(test: Any) -> Any:
    """Network namespaces do."""
    missing = os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None
    skip = pytest.mark.skipif(missing, reason="network namespaces need root and iproute2")
    return pytest.mark.slow(pytest.mark.root(skip(test)))


@needs_root
async def test_a_server_among_namespaces_answers_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    interfaces = socket.if_nameindex()
    setting, bundle = Setting(instances=2, shuffles=2), write_linear_bundle(tmp_path)
    data = tmp_path / "data.npz"
    np.savez(data, inputs=queries(20), labels=np.argmax(predictions(queries(20)), axis=1))
    with contended(setting, 0) as (places, prefix, begin):
        options = ServeOptions(instances=3, port=0, placements=places)
        async with served(bundle, options, prefix) as server:
            load = LoadSpec(url=server.message, inputs=str(data), rate=100, queries=100, warm_up=10)
            result = await offer_load_from_own_process(load, begin, prefix)
    assert result.answered.all()
    assert result.score.all()
    with contended(setting, 0) as (places, _, begin):
        machines = [each.prefix for each in places]
        begin()
        async with asyncio.timeout(60):
            while min(sum(carried(each)[way] for each in machines) for way in (0, 1)) < 500_000:
                await asyncio.sleep(0.02)
        assert "tbf" in inside(machines[0], "tc", "qdisc", "show", "dev", "eth0")
    assert not any(_alive(int(machine[2])) for machine in machines)
    assert socket.if_nameindex() == interfaces


def carried(namespace: tuple[str, ...]) -> tuple[int, int]:
    """Bytes that came and went by the namespace's link."""
    table = inside(namespace, "cat", "/proc/net/dev")
    found = re.search(r"eth0: *(\d+)(?: +\d+){7} +(\d+)", table)
    assert found
    return int(found[1]), int(found[2])


def inside(namespace: tuple[str, ...], *command: str) -> str:
    done = subprocess.run((*namespace, *command), check=True, capture_output=True, text=True)
    return done.stdout


def test_without_root_or_its_tools_the_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ContentionError, match="takes root"):
        check_privileges()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ContentionError, match="install the package iproute2"):
        check_privileges()


ABANDONED = """
from parity_models_lab.contention import star
with star(1) as made:
    print(made.frontend, *made.machines, flush=True)
    input()
"""


@needs_root
def test_the_namespaces_of_a_killed_process_are_gone() -> None:
    command = [sys.executable, "-c", ABANDONED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        holders = [int(holder) for holder in process.stdout.readline().split()]
        assert all(map(_alive, holders))
        process.send_signal(signal.SIGKILL)
    until(lambda: not any(map(_alive, holders)), "a process holds a namespace")


def _alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.slow
async def test_a_server_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path)
    before = psutil.Process().children()
    up = asyncio.Event()

    async def serve() -> None:
        async with served(bundle, ServeOptions(port=0)):
            up.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await up.wait()
    assert psutil.Process().children() != before
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()
    assert psutil.Process().children() == before
