"""A worker that is a thread, and what its engine would say to it."""

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import zmq

from parity_models.faults import Constant, FaultPlan
from parity_models.models.onnx_model import OnnxModel
from parity_models.serving.worker.socket_key import SocketKey
from parity_models.serving.worker.sockets import WorkerSockets
from parity_models.serving.worker.wire import (
    Failed,
    Finished,
    Heartbeat,
    Hello,
    InjectFaults,
    Lease,
    Report,
    Unit,
    encode,
    report_of,
)
from parity_models.serving.worker.worker import Worker

ANY_PORT = "tcp://127.0.0.1:*"
PATIENCE = 30_000
"""Milliseconds that a report may take on a busy machine."""

PLAN = InjectFaults(FaultPlan(service_time=Constant(3600.0)), 0, 0.0)


def endpoints(worker: Worker) -> tuple[str, str]:
    """Where a worker that has sockets listens for units, and for what must not wait for them."""
    units, control = worker.connection.units, worker.connection.control
    assert units is not None
    assert control is not None
    return units, control


class Bench:
    """A worker that is a thread, and its owner, who has its lease as instance "mine"."""

    def __init__(
        self, model: Path, *, key: SocketKey | None, max_frame: int = 2**16, **options: Any
    ) -> None:
        self.key = key
        self.context = zmq.Context()
        sockets = WorkerSockets(ANY_PORT, ANY_PORT, key=key, max_frame=max_frame)
        self.worker = Worker({"deployed": OnnxModel(model)}, sockets, **options)
        self.reports = self.context.socket(zmq.PULL)
        if key is not None:
            key.listen(self.reports)
        self.endpoint = f"tcp://127.0.0.1:{self.reports.bind_to_random_port('tcp://127.0.0.1')}"
        self.threads: list[Thread] = []
        self.heard: list[Report] = []
        self._last = 10_000

    def serve(self, lease: Lease | None = None) -> None:
        thread = Thread(target=self.worker.serve, args=(lease,), daemon=True)
        thread.start()
        self.threads.append(thread)

    def push(self, endpoint: str, key: SocketKey | None) -> "zmq.Socket[bytes]":
        """A connection of somebody who has this key."""
        socket = self.context.socket(zmq.PUSH)
        socket.linger = 0
        if key is not None:
            key.reach(socket)
        socket.connect(endpoint)
        return socket

    def connect(self, key: SocketKey | None) -> None:
        """Have both connections of an owner."""
        self.units, self.control = (self.push(at, key) for at in endpoints(self.worker))

    def own(self) -> None:
        """Have the lease."""
        self.connect(self.key)
        self.units.send(encode(Lease("mine", self.endpoint)))
        assert isinstance(self.until(lambda report: isinstance(report, Hello)), Hello)

    def until(self, wanted: Callable[[Report], bool]) -> Report:
        """The next report of the kind; what else comes is kept in `heard`."""
        while True:
            assert self.reports.poll(PATIENCE), "nothing is heard of the worker"
            report, _ = report_of(self.reports.recv_multipart())
            self.heard.append(report)
            if wanted(report):
                return report

    def runs(self, instance: str = "mine") -> None:
        """The worker runs its owner's units."""
        self._last += 1
        self.units.send_multipart([encode(Unit(instance, self._last, "deployed")), ROW])
        ended = (Finished, Failed)
        report = self.until(lambda it: isinstance(it, ended) and it.unit == self._last)
        assert isinstance(report, Finished)
        assert (report.instance, report.unit) == (instance, self._last)
        assert all(thread.is_alive() for thread in self.threads)
        assert self.worker.attends

    def counted(self, what: str, least: int) -> int:
        """How many of a kind the worker says that it refused, once it is as many as `least`."""

        def count() -> int:
            beats = [report for report in self.heard if isinstance(report, Heartbeat)]
            return sum(getattr(beat, what) for beat in beats)

        while count() < least:
            self.until(lambda report: isinstance(report, Heartbeat))
        return count()


ROW = np.ones(4, np.float32).tobytes()
