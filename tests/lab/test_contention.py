"""Contention is felt by those it is meant for, and leaves nothing behind."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_models.emulation import Constant, Pauses
from parity_models.errors import BundleError, ContentionError
from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.result import LoadResult
from parity_models.load.served import Served, served
from parity_models.serving.server import ServeOptions
from parity_models_lab.contention import processor
from parity_models_lab.contention.apply import Contended, contended
from parity_models_lab.contention.namespaces import NAMES, PREFIX
from parity_models_lab.contention.network import star
from parity_models_lab.contention.plan import Contention, Hogs, Tenant
from parity_models_lab.contention.processor import ROOT, quota
from parity_models_lab.contention.transfers import Network
from served import predictions, queries, until, write_linear_bundle

pytestmark = pytest.mark.slow

WORKERS = 3


def needs_root(test: Any) -> Any:
    """Network namespaces do."""
    missing = os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None
    skip = pytest.mark.skipif(missing, reason="network namespaces need root and iproute2")
    return pytest.mark.root(skip(test))


async def offer(
    bundle: Path, plan: Contention, during: list[str] | None = None
) -> tuple[LoadResult, Contended]:
    """A short load on a server under a plan, and what namespaces there were meanwhile."""
    data = bundle.parent / "data.npz"
    np.savez(data, inputs=queries(20), labels=np.argmax(predictions(queries(20)), axis=1))
    options = ServeOptions(instances=WORKERS, port=0)
    async with contended(plan, WORKERS, bundle) as contention:
        here = replace(options, placements=contention.placements)
        async with served(bundle, here, contention.prefix) as server:
            load = LoadSpec(url=server.url, inputs=str(data), rate=100, queries=100, warm_up=10)
            result = await offer_load_from_own_process(
                load, lambda: contention.begin(server.pid), contention.prefix
            )
            if during is not None:
                during += own_namespaces()
    return result, contention


def own_namespaces() -> list[str]:
    return sorted(path.name for path in NAMES.glob(f"{PREFIX}*"))


def those_of(contention: Contended) -> list[str]:
    """The namespaces that the process behind it made."""
    maker = contention.prefix[-1].removesuffix("frontend")
    return [name for name in own_namespaces() if name.startswith(maker)]


@needs_root
async def test_a_server_in_a_network_of_namespaces_answers_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    interfaces = {name for _, name in socket.if_nameindex()}
    during: list[str] = []
    plan = Contention(network=Network(shuffles=2))
    result, contention = await offer(write_linear_bundle(tmp_path), plan, during)
    assert result.answered.all()
    assert result.score.all()
    assert sum(contention.prefix[-1].removesuffix("frontend") in name for name in during) == 5
    assert those_of(contention) == []
    added = {name for _, name in socket.if_nameindex()} - interfaces
    assert not [name for name in added if name.startswith(("bridge", "port-"))]


@needs_root
async def test_shuffles_go_through_the_workers_links(tmp_path: Path) -> None:
    plan = Contention(network=Network(shuffles=2, smallest=125_000, largest=125_000))
    async with contended(plan, 2, tmp_path) as contention:
        machine = contention.placements[0].prefix[-1]
        contention.begin(os.getpid())
        async with asyncio.timeout(60):
            while min(sent(machine), received(machine)) < 500_000:
                await asyncio.sleep(0.02)
        assert shaped(machine)


def sent(namespace: str) -> int:
    return _counters(namespace)[1]


def received(namespace: str) -> int:
    return _counters(namespace)[0]


def _counters(namespace: str) -> tuple[int, int]:
    """Bytes that came and went by the namespace's link."""
    table = inside(namespace, "cat", "/proc/net/dev")
    found = re.search(r"eth0: *(\d+)(?: +\d+){7} +(\d+)", table)
    assert found
    return int(found[1]), int(found[2])


def shaped(namespace: str) -> bool:
    return "tbf" in inside(namespace, "tc", "qdisc", "show", "dev", "eth0")


def inside(namespace: str, *command: str) -> str:
    arguments = ["ip", "netns", "exec", namespace, *command]
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


async def test_paused_workers_are_stopped_and_continued(tmp_path: Path) -> None:
    plan = Contention(pauses=Pauses(0.01, Constant(0.5), workers=(1,)))
    bundle = write_linear_bundle(tmp_path)
    options = ServeOptions(instances=2, port=0)
    async with contended(plan, 2, bundle) as contention, served(bundle, options) as server:
        paused, other = workers_of(server)[1], workers_of(server)[0]
        contention.begin(server.pid)
        await asyncio.to_thread(until, lambda: state(paused) == "T", "it is not stopped")
        await asyncio.to_thread(until, lambda: state(paused) != "T", "it is not continued")
        await asyncio.to_thread(until, lambda: state(paused) == "T", "it is not stopped again")
        assert state(other) != "T"


async def test_workers_that_are_stopped_when_contention_ends_are_continued(tmp_path: Path) -> None:
    plan = Contention(pauses=Pauses(0.01, Constant(1.0)))
    bundle = write_linear_bundle(tmp_path)
    options = ServeOptions(instances=2, port=0)
    async with served(bundle, options) as server:
        async with contended(plan, 2, bundle) as contention:
            contention.begin(server.pid)
            workers = workers_of(server).values()
            await asyncio.to_thread(
                until, lambda: any(state(pid) == "T" for pid in workers), "none is stopped"
            )
        assert all(state(pid) != "T" for pid in workers)


def workers_of(server: Served) -> dict[int, int]:
    """The process ids of a server's workers, by number."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    found = {}
    for pid in map(int, children):
        number = re.search(rb'"instance":"(\d+)', Path(f"/proc/{pid}/cmdline").read_bytes())
        assert number
        found[int(number[1])] = pid
    return found


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


async def test_hogs_are_on_their_cores_while_contention_lasts(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    plan = Contention(hogs=Hogs((core,), mean_between=0, mean_length=1, each=2))
    async with contended(plan, 2, tmp_path) as contention:
        assert all(place.prefix[-1] == str(core) for place in contention.placements)
        contention.begin(os.getpid())
        hogs = await asyncio.to_thread(two_busy_hogs, core)
    assert not any(Path(f"/proc/{pid}").exists() for pid in hogs)


def two_busy_hogs(core: int) -> list[int]:
    """The hogs that this process's contention has, once they have used some of their core."""
    found: list[int] = []

    def busy() -> bool:
        found[:] = []
        for process in children(os.getpid()):
            for pid in children(process):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                used = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])
                if b"contention.hogs" in command and used > 20:
                    found.append(pid)
        return [os.sched_getaffinity(pid) for pid in found] == [{core}, {core}]

    until(busy, f"there are no two busy hogs on core {core} alone")
    return found


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


async def test_a_server_beside_another_tenant_answers(tmp_path: Path) -> None:
    plan = Contention(tenant=Tenant(instances=2, rate=100, service_time=Constant(0.01)))
    result, contention = await offer(write_linear_bundle(tmp_path), plan)
    assert result.answered.all()
    shared = {place.device for place in contention.placements if place.device}
    assert len(shared) == 2
    assert not any(Path(device).exists() for device in shared)


async def test_a_bundle_that_another_tenant_cannot_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no-bundle"):
        async with contended(Contention(tenant=Tenant()), WORKERS, tmp_path / "no-bundle"):
            pass


# Whatever happens

ABORTED = """
import asyncio, sys
from pathlib import Path
from parity_models_lab.contention.apply import contended
from parity_models_lab.contention import processor
from parity_models_lab.contention.plan import Contention
from parity_models_lab.contention.processor import ROOT, quota
from parity_models_lab.contention.transfers import Network

async def main():
    plan = Contention(network=Network(shuffles=2))
    async with contended(plan, 2, Path(".")) as contention:
        contention.begin(0)
        print(contention.prefix[-1], flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@contextmanager
def in_a_process_of_its_own() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Contention on a network, in another process; yields that and the frontend's namespace."""
    process = subprocess.Popen(
        [sys.executable, "-c", ABORTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        frontend = process.stdout.readline().strip()
        assert frontend in own_namespaces()
        yield process, frontend
    finally:
        process.kill()
        process.communicate()


@needs_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_contention_whose_owner_ends(number: signal.Signals) -> None:
    with in_a_process_of_its_own() as (process, frontend):
        process.send_signal(number)
        process.wait()
        maker = frontend.removesuffix("frontend")
        until(
            lambda: not any(name.startswith(maker) for name in own_namespaces()),
            "namespaces are left",
        )


@needs_root
def test_what_a_killed_process_has_left_the_next_removes() -> None:
    with in_a_process_of_its_own() as (_, frontend):
        maker = int(frontend.removeprefix(PREFIX).split("-")[0])
        os.kill(maker, signal.SIGKILL)
        until(lambda: is_dead(maker), "it is still there")
        assert frontend in own_namespaces()
        with star(Network(shuffles=0), 1):
            assert frontend not in own_namespaces()


def is_dead(pid: int) -> bool:
    try:
        return state(pid) == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


# A slower processor

COMPUTE = """
import time
end = time.perf_counter() + 1
while time.perf_counter() < end:
    pass
print(time.process_time())
"""


@pytest.mark.root
@pytest.mark.skipif(not os.access(ROOT, os.W_OK), reason="quotas need root and cgroup v1")
def test_a_group_gets_its_quota_and_leaves_nothing() -> None:
    with quota(0.2) as group:
        group.begin()
        command = (*group.prefix, sys.executable, "-c", COMPUTE)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert group.group.exists()
    assert 0.1 < float(done.stdout) < 0.4
    assert not group.group.exists()


def test_without_control_groups_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "ROOT", ROOT / "nowhere" / "at all")
    with pytest.raises(ContentionError, match="needs root and cgroup v1"), quota(0.5):
        pass
