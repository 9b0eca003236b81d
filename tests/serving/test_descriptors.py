"""A server may open as many files as its connections and workers need, or says that it may not."""

import os
import resource
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from commands import parm
from parity_models.serving.limits import FILES_OF_A_WORKER, OTHER_FILES, allow_descriptors
from served import ServerProcess, until

pytestmark = pytest.mark.slow

NEEDED = 1000 + 2 * FILES_OF_A_WORKER + OTHER_FILES


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The soft and the hard limit of a process that is not this one."""
    limits = [256, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda which: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda which, given: limits.__setitem__(0, given[0]))
    return limits


@pytest.mark.parametrize(
    ("soft", "hard", "then"),
    [
        (256, 4096, NEEDED),
        (256, resource.RLIM_INFINITY, NEEDED),
        (2000, 4096, 2000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
        (256, 512, 512),
    ],
)
def test_the_limit_is_raised_to_what_is_needed_or_the_log_says_so(
    limits: list[int], soft: int, hard: int, then: int, caplog: pytest.LogCaptureFixture
) -> None:
    limits[:] = soft, hard
    allow_descriptors(connections=1000, workers=2)
    assert limits == [then, hard]
    assert (f"workers may need {NEEDED}" in caplog.text) == (then == 512)


def test_a_server_that_may_open_too_few_files_does_not_start(bundle: Path) -> None:
    done = subprocess.run(
        parm("serve", "--port", "0", str(bundle)),
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80)),
        check=False,
    )
    assert done.returncode == 2
    assert not done.stdout
    assert "may open 80 files (RLIMIT_NOFILE)" in done.stderr
    assert "ulimit -Hn" in done.stderr


def test_idle_crowds_leave_descriptors(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    few = 128
    with ServerProcess(str(bundle)) as server, ExitStack() as idle:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (few, few))
        server.process.send_signal(signal.SIGSTOP)  # so that they come at once
        for _ in range(4 * few):
            idle.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
        os.kill(server.workers()[0], signal.SIGKILL)
        server.process.send_signal(signal.SIGCONT)
        assert httpx.get(f"{server.url}/v2/health/live", timeout=60).status_code == 200
        until(lambda: server.metric("parm_instance_restarts_total") >= 1, "no worker is restarted")
    assert "Too many open files" not in capfd.readouterr().err
