"""Processes: their descendants and processor time; nothing of those that are gone."""

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
