"""A slower processor: a quota of a control group (cgroup v1)."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parity_models_lab.contention.transfers import ContentionError

PERIOD = 0.01
"""Seconds for which a quota is granted at once."""

ROOT = Path("/sys/fs/cgroup/cpu")
GRACE = 5.0
"""Seconds that processes of a control group have to end."""


@contextmanager
def quota(cores: float) -> Iterator[tuple[tuple[str, ...], Callable[[], None]]]:
    """Make a control group while the context lasts; gives the beginning of commands in the group,
    and a function that limits its processes to `cores` cores' time in each PERIOD from then on.
    Raises ContentionError where that fails."""
    group = ROOT / f"parm-{os.getpid()}-{time.monotonic_ns()}"
    enter = f'echo $$ > {group / "cgroup.procs"} && exec "$@"'

    def begin() -> None:
        try:
            for name, seconds in (("period", PERIOD), ("quota", PERIOD * cores)):
                (group / f"cpu.cfs_{name}_us").write_text(f"{round(seconds * 1e6)}")
        except OSError as error:
            raise ContentionError(f"cannot limit {group}: {error.strerror}") from error

    try:
        group.mkdir()
    except OSError as error:
        raise ContentionError(
            f"cannot make a control group in {ROOT}: {error.strerror}; a slower processor needs "
            "root and cgroup v1; leave out the speed"
        ) from error
    try:
        yield ("sh", "-c", enter, "sh"), begin
    finally:
        until = time.monotonic() + GRACE
        while group.exists() and time.monotonic() < until:
            with suppress(OSError):
                group.rmdir()
            time.sleep(0.05)
