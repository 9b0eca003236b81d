"""The process that makes all contention, and removes it.

It sets up the plan, says where workers are to run, begins on command, and cleans up when its
standard input ends, so that nothing is left behind, however its parent ends.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from threading import Event, Thread
from types import FrameType
from typing import NoReturn

import msgspec

from parity_models.load.child import exit_code, tell
from parity_models.serving.engine import Placement
from parity_models_lab.contention.hogs import hogs
from parity_models_lab.contention.network import FRONTEND_ADDRESS, Star, star
from parity_models_lab.contention.pauses import pause_workers, steps
from parity_models_lab.contention.plan import Contention
from parity_models_lab.contention.shuffles import start_shuffles


class Spec(msgspec.Struct):
    """The plan, and the number of workers."""

    plan: Contention
    workers: int


class Ready(msgspec.Struct):
    """Everything is set up; for `prefix` and `placements` see Contended."""

    prefix: tuple[str, ...]
    placements: tuple[Placement, ...]


class Begin(msgspec.Struct):
    """Begin at `start` of time.monotonic(), against the server with this process id."""

    start: float
    server: int


def _run(spec: Spec) -> None:
    plan, workers = spec.plan, spec.workers
    plan.check(workers)
    with ExitStack() as stack:
        network = stack.enter_context(star(plan.network, workers)) if plan.network else None
        prefix = _inside(network.frontend) if network else ()
        placements = _placements(plan, workers, network)
        waiting: list[subprocess.Popen[str]] = []
        if plan.hogs is not None:
            waiting += stack.enter_context(hogs(plan.hogs, plan.seed))
        tell(msgspec.json.encode(Ready(prefix, placements)).decode())
        if line := sys.stdin.readline():
            begin = msgspec.json.decode(line, type=Begin)
            for process in waiting:
                _write(process, f"{begin.start}\n")
            with _threads(plan, workers, network, begin):
                sys.stdin.read()


@contextmanager
def _threads(plan: Contention, workers: int, network: Star | None, begin: Begin) -> Iterator[None]:
    stop = Event()
    threads: list[Thread] = []
    try:
        if plan.network is not None and network is not None:
            threads += start_shuffles(plan.network, network, plan.seed, begin.start, stop)
        if plan.pauses is not None:
            course = steps(plan.pauses, workers, plan.seed)
            pausing = Thread(target=pause_workers, args=(course, begin.server, begin.start, stop))
            pausing.start()
            threads.append(pausing)
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _placements(plan: Contention, workers: int, network: Star | None) -> tuple[Placement, ...]:
    # The tenant shares a device with each of its neighbours: a file without a name.
    devices = {
        machine: f"/proc/{os.getpid()}/fd/{os.memfd_create(f'device {machine}')}"
        for machine in plan.shared(workers)
    }
    cores = list(islice(cycle(plan.hogs.cores), workers)) if plan.hogs else None
    placements = []
    for worker in range(workers):
        prefix = _inside(network.machines[worker]) if network else ()
        if cores:
            prefix += ("taskset", "--cpu-list", str(cores[worker]))
        link = FRONTEND_ADDRESS if network else None
        placements.append(Placement(prefix, link, devices.get(worker)))
    return tuple(placements)


def _inside(namespace: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", namespace)


def _write(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line)
    process.stdin.flush()


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def main(spec: str) -> int:
    """Do as the JSON `spec` says; write Ready, or an error, to standard output."""
    signal.signal(signal.SIGTERM, _exit)
    return exit_code(lambda: _run(msgspec.json.decode(spec, type=Spec)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
