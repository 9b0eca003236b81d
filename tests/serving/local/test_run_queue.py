"""Whether processes use all cores is read from the kernel's account of them."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine_conformance import DEPLOYED, row
from local_engines import running
from onnx_models import moody_model
from parity_models.faults import Constant, FaultPlan
from parity_models.serving.local.run_queue import PROC, all_cores_used

SPIN = "print(flush=True)\nwhile True: pass"
SLEEP = "import time\nprint(flush=True)\ntime.sleep(1000)"


@contextmanager
def processes(*programs: str) -> Iterator[list[int]]:
    """The ids of Python processes that have begun to run these."""
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        for program in programs
    ]
    try:
        for each in running:
            assert each.stdout is not None
            each.stdout.readline()
        time.sleep(0.05)
        yield [each.pid for each in running]
    finally:
        for each in running:
            each.kill()
            each.communicate()


def used(pids: Sequence[int], cores: int, proc: Path = PROC, others: int = 9) -> bool:
    """Of instances that run in these processes, beside `others` that have no unit."""
    running = {f"{pid}": pid for pid in pids}
    idle = {f"idle-{number}": 0 for number in range(others)}
    return all_cores_used(running | idle, running.keys(), cores, proc)


def test_processes_that_compute_or_wait_for_a_core_use_it_and_others_do_not() -> None:
    with processes(SPIN, SPIN, SLEEP) as pids:
        assert used(pids, cores=2)
        assert used(pids, cores=1)
        assert not used(pids, cores=3)
        assert not used(pids[1:], cores=2)
        assert not used(pids[2:], cores=1)


def test_where_each_instance_has_a_core_they_share_none() -> None:
    with processes(SPIN) as pids:
        assert used(pids, cores=1, others=1)
        assert not used(pids, cores=1, others=0)


def test_a_process_that_is_stopped_or_gone_uses_none() -> None:
    with processes(SPIN, SPIN) as pids:
        os.kill(pids[0], 19)
        time.sleep(0.05)
        assert not used(pids, cores=2)
    assert not used(pids, cores=1)


def test_names_of_programs_with_brackets_and_states_in_them_are_read_past(tmp_path: Path) -> None:
    for pid, stat in ((1, b"1 (a) R b) S 0 1"), (2, b"2 (S) R 0 1"), (3, b"")):
        (tmp_path / f"{pid}").mkdir()
        (tmp_path / f"{pid}" / "stat").write_bytes(stat)
    assert used([2], cores=1, proc=tmp_path)
    assert not used([1, 3, 4], cores=1, proc=tmp_path)


def test_where_the_system_tells_nothing_no_core_is_known_to_be_used(tmp_path: Path) -> None:
    assert not used([os.getpid()], cores=1, proc=tmp_path)
    assert not used([], cores=1)


@pytest.mark.slow
@pytest.mark.parametrize("computing", [True, False])
async def test_units_that_compute_crowd_an_engine_and_those_that_wait_do_not(
    tmp_path: Path, computing: bool
) -> None:
    moody_model(tmp_path / "m.onnx")
    cores = len(os.sched_getaffinity(0))
    roles = [DEPLOYED] * (cores + 1)
    async with running(tmp_path / "m.onnx", roles, allows_faults=True) as (engine, _):
        engine.inject_faults(FaultPlan(service_time=Constant(2.0), computing=computing))
        names = sorted(engine.running())
        for unit, name in enumerate(names):
            engine.run(name, unit, "deployed", [row(0, 0)])
        await asyncio.sleep(0.7)
        assert engine.crowded(names) is computing
        assert not engine.crowded(names[: cores - 1])
        assert not engine.crowded(["unheard-of"] * cores)
