"""Whether instances use all cores, by what the kernel says of their processes."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

PROC = Path("/proc")
"""See proc(5). Other systems than Linux have none: there no core is ever known to be used."""


def all_cores_used(
    pids: Mapping[str, int],
    running: Collection[str],
    cores: int | None = None,
    proc: Path = PROC,
) -> bool:
    """Do as many of the `running` instances compute, or wait for a core, as there are `cores`?

    `pids` are the processes of all instances, whose main threads compute; by default they may use
    the cores that this one may. No, where there are no more instances than cores.
    """
    cores = cores or _usable_cores()
    if not len(running) >= cores < len(pids):
        return False
    used = 0
    for instance in running:
        used += instance in pids and _uses_core(proc / f"{pids[instance]}/stat")
        if used >= cores:
            return True
    return False


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _uses_core(stat: Path) -> bool:
    """Does this process, if it is there, compute or wait for a core?"""
    try:
        with open(stat, "rb") as file:
            return file.read(100).rpartition(b") ")[2].startswith(b"R")
    except OSError:
        return False
