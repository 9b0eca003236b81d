"""A worker process: an instance of the local engine.

One thread receives a unit, computes, reports, and does nothing else: no query passes from thread to
thread. A second thread does what cannot wait for a unit to end: it sends heartbeats, and cancels
units.
"""

import os
import signal
import socket
import sys
import time
from contextlib import suppress
from threading import Thread
from typing import NoReturn

import msgspec

from parity_models.errors import ModelError
from parity_models.serving.worker.runner import Runner, load
from parity_models.serving.worker.wire import (
    CONTROL,
    HEARTBEAT,
    WORK,
    Assignment,
    Heartbeat,
    Hello,
    InjectFaults,
    Unit,
    WorkerStream,
    encode,
    read,
)


class Worker:
    """Serves the engine at the other end of its streams with what `runner` runs."""

    def __init__(
        self, runner: Runner, units: WorkerStream, control: WorkerStream, parent: int
    ) -> None:
        self._runner = runner
        self._units = units
        self._control = control
        self._parent = parent

    def serve(self, hello: Hello) -> None:
        """Say hello and serve until the engine is gone. Raises MessageError."""
        self._units.send(encode(hello))
        Thread(target=self._control_loop, daemon=True).start()
        while True:
            try:
                header, rows = self._units.receive()
            except EOFError:
                return
            match message := read(WORK, header):
                case Unit():
                    report, outputs = self._runner.run(message, rows)
                    self._units.send(encode(report), outputs)
                case InjectFaults(plan, worker, start):
                    self._runner.inject(plan, worker, start)

    def _control_loop(self) -> NoReturn:
        heartbeat = encode(Heartbeat())
        due = time.monotonic()
        while True:
            wait = due - time.monotonic()
            if wait <= 0:
                if os.getppid() != self._parent:
                    os._exit(0)
                self._control.send(heartbeat)
                due = time.monotonic() + HEARTBEAT
            elif self._control.wait(wait):
                try:
                    header, _ = self._control.receive()
                except EOFError:
                    os._exit(0)
                self._runner.cancel(read(CONTROL, header).unit)


def _streams(assigned: Assignment) -> tuple[WorkerStream, WorkerStream]:
    if assigned.streams is not None:
        units, control = (socket.socket(fileno=each) for each in assigned.streams)
    else:
        assert assigned.address is not None
        units, control = (socket.create_connection(assigned.address) for _ in range(2))
        for each in (units, control):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return WorkerStream(units), WorkerStream(control)


def main() -> None:
    """Serve the engine that started this process, until it or the engine ends."""
    # The engine says when to end; a signal to a whole group of processes reaches it, too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Where memory is short, a worker ends before the process that all clients are connected to.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("500")
    assigned = msgspec.json.decode(sys.argv[1], type=Assignment)
    try:
        models = {role: load(model) for role, model in assigned.models.items()}
    except (ModelError, OSError) as error:
        sys.exit(str(error))
    signatures = {role: model.signature for role, model in models.items()}
    runner = Runner(models, device=assigned.device)
    Worker(runner, *_streams(assigned), assigned.parent).serve(Hello(signatures))
    os._exit(0)


if __name__ == "__main__":
    main()
