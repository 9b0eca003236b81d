"""A slower processor: a quota of a control group (cgroup v1)."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from parity_models_lab.contention import ContentionError

PERIOD = 0.01
"""Seconds for which a quota is granted at once."""

ROOT = Path("/sys/fs/cgroup/cpu")
GRACE = 5.0
"""Seconds that processes of a control group have to end."""


@dataclass(frozen=True)
class Quota:
    """A control group, whose processes get `cores` cores' time in each PERIOD from `begin` on.

    A command that begins with `prefix` runs in the group.
    """

    group: Path
    cores: float

    @property
    def prefix(self) -> tuple[str, ...]:
        enter = f'echo $$ > {self.group / "cgroup.procs"} && exec "$@"'
        return ("sh", "-c", enter, "sh")

    def begin(self) -> None:
        """Limit the group from now on. Raises ContentionError where it cannot be."""
        limits = {"cpu.cfs_period_us": PERIOD, "cpu.cfs_quota_us": PERIOD * self.cores}
        for name, seconds in limits.items():
            file = self.group / name
            try:
                file.write_text(f"{round(seconds * 1e6)}")
            except OSError as error:
                raise ContentionError(f"cannot write {file}: {error.strerror}") from error


@contextmanager
def quota(cores: float) -> Iterator[Quota]:
    """Make a control group while the context lasts. Raises ContentionError where that fails."""
    group = ROOT / f"parm-{os.getpid()}-{time.monotonic_ns()}"
    try:
        group.mkdir()
    except OSError as error:
        raise ContentionError(
            f"cannot make a control group in {ROOT}: {error.strerror}; a slower processor needs "
            "root and cgroup v1; leave out the speed"
        ) from error
    try:
        yield Quota(group, cores)
    finally:
        until = time.monotonic() + GRACE
        while group.exists() and time.monotonic() < until:
            with suppress(OSError):
                group.rmdir()
            time.sleep(0.05)
