"""Pauses: workers' processes are stopped and continued, as by a garbage collector."""

import heapq
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from signal import SIGCONT, SIGSTOP, Signals, pidfd_send_signal
from threading import Event
from typing import NamedTuple

import msgspec

from parity_models.emulation import Exponential, FaultPlan, Pauses, Spells
from parity_models.emulation.fault_plan import course_of
from parity_models.serving.worker.wire import Assignment

LONGEST = 1.5
"""Seconds: an engine considers a worker dead after two without a heartbeat."""


class Step(NamedTuple):
    """At `time`, `signal` is sent to the process of worker number `worker`."""

    time: float
    worker: int
    signal: Signals


def steps(pauses: Pauses, workers: int, seed: int) -> Iterator[Step]:
    """Yield the course of all workers' pauses, in order of time, without end."""
    chosen = range(workers) if pauses.workers is None else pauses.workers
    return heapq.merge(*(_steps_of(pauses, worker, seed) for worker in chosen))


def _steps_of(pauses: Pauses, worker: int, seed: int) -> Iterator[Step]:
    rng = FaultPlan(seed).rng(course_of(pauses, worker), "pauses")  # as simulated
    spells = Spells(rng, Exponential(pauses.mean_between), pauses.length)
    end = 0.0
    for _ in count():
        start, end = spells.after(end)
        yield Step(start, worker, SIGSTOP)
        yield Step(min(end, start + LONGEST), worker, SIGCONT)


def pause_workers(course: Iterator[Step], server: int, start: float, stop: Event) -> None:
    """Stop and continue workers of the server with this process id until `stop` is set.

    The course begins at `start` of time.monotonic(). At the end, all are continued.
    """
    stopped: dict[int, int] = {}
    try:
        for step in course:
            if stop.wait(max(0.0, start + step.time - time.monotonic())):
                return
            if step.signal is SIGSTOP:
                process = _find_worker(server, step.worker)
                if process is not None:
                    stopped[step.worker] = process
                    _send(process, SIGSTOP)
            elif step.worker in stopped:
                _continue(stopped.pop(step.worker))
    finally:
        for process in stopped.values():
            _continue(process)


def _continue(process: int) -> None:
    _send(process, SIGCONT)
    os.close(process)


def _send(process: int, signal: Signals) -> None:
    with suppress(ProcessLookupError):  # killed, and perhaps replaced, meanwhile
        pidfd_send_signal(process, signal)


def _find_worker(server: int, number: int) -> int | None:
    """Return a pidfd of the server's worker with this number, if one is up."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            process = os.pidfd_open(int(path.name))
        except OSError:
            continue
        # Read once the pidfd is held, lest the id be another process's by now.
        assignment = _assignment(path / "cmdline")
        if (
            assignment is not None
            and assignment.parent == server
            and assignment.instance.partition(".")[0] == str(number)
        ):
            return process
        os.close(process)
    return None


def _assignment(command_line: Path) -> Assignment | None:
    """Return the assignment on a worker's command line; None for other processes."""
    try:
        last = command_line.read_bytes().rstrip(b"\0").rpartition(b"\0")[2]
        return msgspec.json.decode(last, type=Assignment)
    except (OSError, msgspec.DecodeError):
        return None
