"""Processes: their children, command line, memory and limits; nothing of those that are gone."""

import os
import resource
import signal
from collections.abc import Iterable
from contextlib import suppress

import psutil


def descendants(pid: int) -> list[int]:
    """Return the process's children, theirs, and so on; without it."""
    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the user and system time so far of these processes."""
    seconds = 0.0
    for pid in pids:
        with suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            seconds += times.user + times.system
    return seconds


def command_line(pid: int) -> str:
    """Return the process's command line."""
    with suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def resident(pid: int) -> int:
    """Return its resident bytes."""
    with suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


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
