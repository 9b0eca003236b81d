"""Busy and slower processors: hogs, which keep cores busy in spells, and a quota (cgroup v1).

Run as a program, it is a hog: a JSON `_Hog`. It ends with the process that started it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated

import msgspec

from parity_models.emulation import Duration, Exponential, Spell, Spells
from parity_models_lab.contention import ContentionError

LOOK = 0.05
"""Seconds between two looks at the clock, and at whether the parent is still there."""

PERIOD = 0.01
"""Seconds for which a quota is granted at once."""

ROOT = Path("/sys/fs/cgroup/cpu")
GRACE = 5.0
"""Seconds that processes of a control group have to end."""


class Hogs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Processes that take all they can get of a core, in spells.

    Workers are pinned to this machine's cores in turn, and `each` hogs to each of these. Spells and
    the times between them are exponential, in seconds on average; `mean_between` 0 is always busy.
    """

    each: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    mean_between: Duration = 2.0
    mean_length: Spell = 1.0

    def spells(self, seed: int, number: int) -> Spells:
        """Return the course of a hog, by its number among all of them."""
        gap, length = Exponential(self.mean_between), Exponential(self.mean_length)
        return Spells(Random(f"{seed}/hog {number}"), gap, length)


class _Hog(msgspec.Struct):
    """Hog `number` of `hogs`, on a core; its course begins at `start` of time.monotonic()."""

    hogs: Hogs
    seed: int
    number: int
    core: int
    start: float


@contextmanager
def hogging(hogs: Hogs, cores: Sequence[int], seed: int) -> Iterator[Callable[[float], None]]:
    """Yield a function that starts hogs, whose courses begin at a time of time.monotonic()."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(start: float) -> None:
        for number, core in enumerate([*cores] * hogs.each):
            spec = msgspec.json.encode(_Hog(hogs, seed, number, core, start)).decode()
            processes.append(subprocess.Popen([sys.executable, "-m", __name__, spec]))

    try:
        yield begin
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _run(hog: _Hog) -> None:
    parent = os.getppid()
    os.sched_setaffinity(0, {hog.core})
    spells = hog.hogs.spells(hog.seed, hog.number)
    while os.getppid() == parent:
        now = time.monotonic()
        begin, end = (hog.start + at for at in spells.after(now - hog.start))
        if now < begin:
            time.sleep(min(LOOK, begin - now))
        while now < end and time.monotonic() < min(end, now + LOOK):
            pass


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


if __name__ == "__main__":
    _run(msgspec.json.decode(sys.argv[1], type=_Hog))
