"""Processes as /proc shows them: their children, processor time, memory and sockets."""

import os
import resource
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_LISTENS = "0A"
"""The state of a listening socket in /proc/net/tcp."""


def processes_at(port: int) -> set[int]:
    """Return this machine's processes that listen on a TCP port, with their descendants; none
    where that cannot be known: for a server elsewhere, or of another user."""
    wanted = {
        f"socket:[{fields[9]}]"
        for fields in _sockets()
        if fields[3] == _LISTENS and _port(fields[1]) == port
    }
    holders = set()
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):
            if any(os.readlink(file) in wanted for file in (folder / "fd").iterdir()):
                holders.add(int(folder.name))
    return holders.union(*map(descendants, holders))


def descendants(pid: int) -> list[int]:
    """Return the process's children, theirs, and so on; without it."""
    found = []
    todo = [pid]
    while todo:
        for file in _PROC.glob(f"{todo.pop()}/task/*/children"):
            with suppress(OSError):
                children = [int(child) for child in file.read_text().split()]
                found += children
                todo += children
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the user and system time of these processes so far, of all their threads."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def command_line(pid: int) -> str:
    """Return the process's command line; empty if it is gone."""
    try:
        typed = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    return typed.replace(b"\0", b" ").decode(errors="replace")


def resident(pid: int) -> int:
    """Return its resident bytes; 0 if it is gone."""
    try:
        pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def limit_descriptors(pid: int, most: int) -> None:
    """Limit the descriptors of a process, and of the children that it starts."""
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; return False if the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _sockets() -> Iterator[list[str]]:
    """Yield the fields of each TCP socket of this machine, as /proc/net/tcp has them."""
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (_PROC / "net" / name).read_text().splitlines()[1:]:
                yield line.split()


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
