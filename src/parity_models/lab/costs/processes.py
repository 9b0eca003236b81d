"""The processor time of a server's processes, which are found by its port or its first process."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_LISTENS = "0A"
"""The state of a listening socket in /proc/net/tcp."""


def processes_at(port: int) -> set[int]:
    """Ids of this machine's processes that listen on a TCP port, with their descendants; none
    where that cannot be known: for a server elsewhere, or of another user."""
    wanted = {f"socket:[{inode}]" for inode in _listening(port)}
    holders = set()
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):
            if any(os.readlink(file) in wanted for file in (folder / "fd").iterdir()):
                holders.add(int(folder.name))
    return with_descendants(holders)


def with_descendants(pids: Iterable[int]) -> set[int]:
    """These processes, and those that they started, and so on."""
    found = set(pids)
    for pid in tuple(found):
        for file in _PROC.glob(f"{pid}/task/*/children"):
            with suppress(OSError):
                found |= with_descendants(map(int, file.read_text().split()))
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that these processes have had so far, all their threads together."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _listening(port: int) -> set[str]:
    """Inodes of the sockets that listen on this port."""
    inodes = set()
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (_PROC / "net" / name).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(fields[9])
    return inodes
