"""Linux network namespaces, by name: to set up, to enter, and to remove for good.

Names begin with the process that made them. So namespaces that a killed process left behind can be
found and removed. It needs root, and the tools of Debian's package iproute2.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from parity_models.errors import ContentionError

NAMES = Path("/run/netns")
PREFIX = "parm-"
GRACE = 5.0
"""Seconds that processes in a namespace have to end before they are killed."""

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def check_privileges() -> None:
    """Raise ContentionError if namespaces cannot be made here."""
    if os.geteuid() != 0:
        raise ContentionError(
            "contention on the network is made in network namespaces, which takes root; run this "
            "as root, or leave the network out"
        )
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise ContentionError(f"there is no command {tool}; install the package iproute2")


def configure(tool: str, commands: Sequence[str], namespace: str | None = None) -> None:
    """Let `ip` or `tc` execute commands. Raises ContentionError with its message if it fails."""
    arguments = [tool, *(("-n", namespace) if namespace else ()), "-batch", "-"]
    done = subprocess.run(arguments, input="\n".join(commands), capture_output=True, text=True)
    if done.returncode:
        raise ContentionError(f"{tool} cannot set the network up: {done.stderr.strip()}")


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Move this thread into a namespace; sockets opened meanwhile stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(NAMES / namespace, os.O_RDONLY)
        try:
            _enter(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(namespace: int) -> None:
    # os.setns is there from Python 3.12 on only.
    if _LIBC.setns(namespace, _CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def own_prefix() -> str:
    """Return the prefix of the names that this process gives."""
    return f"{PREFIX}{os.getpid()}-{_started(os.getpid())}-"


def abandoned() -> list[str]:
    """Return the namespaces whose maker has ended."""
    names = [path.name for path in NAMES.glob(f"{PREFIX}*-*-*")]
    return [name for name in names if not _is_running(*name.split("-")[1:3])]


def _is_running(pid: str, started: str) -> bool:
    return pid.isdigit() and _started(int(pid)) == started


def _started(pid: int) -> str | None:
    """Return the start of a running process, in ticks since boot, which with its id identifies it.

    None if there is no such process, or nothing but its exit status.
    """
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else numbers[18]


def remove(names: Sequence[str]) -> None:
    """Remove these namespaces with all interfaces in them, once no process is left in them."""
    end = time.monotonic() + GRACE
    while processes := processes_in(names):
        if time.monotonic() > end:
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for name in names:
        try:
            configure("ip", [f"netns del {name}"])
        except ContentionError:
            # Another process may remove what was abandoned at the same time.
            if (NAMES / name).exists():
                raise


def processes_in(names: Sequence[str]) -> list[int]:
    """Return the ids of the processes in these namespaces."""
    inodes = set()
    for name in names:
        with suppress(OSError):
            inodes.add((NAMES / name).stat().st_ino)
    processes = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (path / "ns/net").stat().st_ino in inodes:
                processes.append(int(path.name))
    return processes
