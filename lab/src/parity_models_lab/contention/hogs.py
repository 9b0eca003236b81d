"""Hogs: processes that keep a core busy in spells.

Run as a program, it is one: CORE SEED NUMBER HOGS.json. Its course begins at the time that it
reads from its standard input, and it ends with the process that started it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import msgspec

from parity_models.emulation import Exponential, Spells
from parity_models_lab.contention.plan import Hogs

_LOOK = 0.05
"""Seconds between two looks at the clock, and at whether the parent is still there."""


@contextmanager
def hogs(plan: Hogs, seed: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Run a plan's processes, which await the time to start on their standard input."""
    spec = msgspec.json.encode(plan).decode()
    processes: list[subprocess.Popen[str]] = []
    try:
        for number, core in enumerate(plan.cores * plan.each):
            arguments = (str(core), str(seed), str(number), spec)
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", __name__, *arguments], stdin=subprocess.PIPE, text=True
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _hog(plan: Hogs, seed: int, number: int, start: float, parent: int) -> None:
    spells = Spells(
        Random(f"{seed}/hog {number}"),
        Exponential(plan.mean_between),
        Exponential(plan.mean_length),
    )
    while os.getppid() == parent:
        now = time.monotonic()
        begin, end = (start + at for at in spells.after(max(0.0, now - start)))
        if now < begin:
            time.sleep(min(_LOOK, begin - now))
        else:
            until = min(end, now + _LOOK)
            while time.monotonic() < until:
                pass


def main(core: str, seed: str, number: str, spec: str) -> None:
    """Keep a core busy from the time on that a line of standard input gives."""
    parent = os.getppid()
    os.sched_setaffinity(0, {int(core)})
    if start := sys.stdin.readline():
        plan = msgspec.json.decode(spec, type=Hogs)
        _hog(plan, int(seed), int(number), float(start), parent)


if __name__ == "__main__":
    main(*sys.argv[1:])
