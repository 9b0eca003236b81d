"""A server may open as many files as its connections and workers need, or says that it may not."""

import logging
import resource
import subprocess
from pathlib import Path

import pytest

from commands import parm
from parity_models.errors import UserError
from parity_models.serving.descriptors import (
    LEAST,
    OF_A_WORKER,
    SPARE,
    OpenFiles,
    allow_descriptors,
)
from served import ServerProcess, write_linear_bundle

pytestmark = pytest.mark.slow

NEEDED = 1000 + 2 * OF_A_WORKER + SPARE


class Limit(OpenFiles):
    """The limit of open files of a process that is not this one."""

    def __init__(self, soft: int, hard: int) -> None:
        self.limits = (soft, hard)

    def read(self) -> tuple[int, int]:
        return self.limits

    def write(self, soft: int, hard: int) -> None:
        self.limits = (soft, hard)


@pytest.mark.parametrize(
    ("soft", "hard", "then"),
    [
        (256, 4096, NEEDED),
        (256, resource.RLIM_INFINITY, NEEDED),
        (256, NEEDED, NEEDED),
        (2000, 4096, 2000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    ],
)
def test_the_limit_is_raised_to_what_is_needed(soft: int, hard: int, then: int) -> None:
    limit = Limit(soft, hard)
    assert allow_descriptors(connections=1000, workers=2, limit=limit)
    assert limit.limits == (then, hard)


def test_a_limit_that_is_too_low_is_told(caplog: pytest.LogCaptureFixture) -> None:
    limit = Limit(256, 512)
    with caplog.at_level(logging.WARNING):
        assert not allow_descriptors(connections=1000, workers=2, limit=limit)
    assert limit.limits == (512, 512)
    assert (
        f"may open 512 files, and 1000 connections and 2 workers may need {NEEDED}" in caplog.text
    )
    assert "--max-connections" in caplog.text


def test_a_limit_that_leaves_no_room_for_clients_is_refused() -> None:
    least = LEAST + 2 * OF_A_WORKER + SPARE
    for hard, refused in ((least - 1, True), (least, False)):
        limit = Limit(80, hard)
        if refused:
            with pytest.raises(UserError, match=f"at most {hard} files .* need {least} "):
                allow_descriptors(connections=1000, workers=2, limit=limit)
        else:
            assert not allow_descriptors(connections=1000, workers=2, limit=limit)


def test_a_server_that_may_open_too_few_files_does_not_start(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path)
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
    assert "may open at most 80 files (RLIMIT_NOFILE)" in done.stderr
    assert "ulimit -Hn" in done.stderr


def test_a_server_raises_its_own_soft_limit(tmp_path: Path) -> None:
    bundle = write_linear_bundle(tmp_path)

    def low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (80, 4096))

    with ServerProcess(str(bundle), before=low) as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
        soft = next(line for line in limits.splitlines() if line.startswith("Max open files"))
        assert int(soft.split()[3]) > 1024
