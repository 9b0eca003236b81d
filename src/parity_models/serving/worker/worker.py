"""A worker: it runs the units of whoever has its lease. As a process, an instance of the local
engine.

One thread takes a unit, computes, reports, and nothing else: a query passes from thread to thread
nowhere. A second thread does what cannot wait for a unit to end: it sends heartbeats, cancels,
and exits when told.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Event, Thread
from typing import NoReturn

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from parity_models.errors import ModelError
from parity_models.faults import WorkerFaults
from parity_models.models.onnx_model import FATAL_ONLY, OnnxModel
from parity_models.models.signature import Kind, Sizes
from parity_models.models.tensor import tensors_in
from parity_models.serving.worker.connection import Connection
from parity_models.serving.worker.device import Device
from parity_models.serving.worker.models import load
from parity_models.serving.worker.pipe import WorkerPipes
from parity_models.serving.worker.wire import (
    HEARTBEAT,
    Assignment,
    Cancel,
    Exit,
    Failed,
    Finished,
    Frame,
    Heartbeat,
    Hello,
    InjectFaults,
    Lease,
    MessageError,
    PipeEnds,
    Release,
    Unit,
    control_of,
    encode,
    rows_of,
    work_of,
)

MAX_DETAIL = 1000
"""Characters of an error that are reported."""

RELEASE = 5 * HEARTBEAT
"""Seconds that an engine has to release a worker that has no unit, and wants to leave."""

_log = logging.getLogger(__name__)


def _nothing() -> None:
    pass


class Worker:
    """Runs units of `models`, by role, for the engines at the other end of its `connection`.

    `device` is a file that is locked while a unit runs; `faults` are what units suffer, and since
    when (time.monotonic()); others are obeyed only if it `allows_faults`.
    """

    def __init__(
        self,
        models: Mapping[str, OnnxModel],
        connection: Connection,
        *,
        device: str | None = None,
        faults: tuple[float, WorkerFaults] | None = None,
        allows_faults: bool = False,
    ) -> None:
        self._models = models
        self.connection = connection
        self._batches: dict[tuple[str, Sizes], NDArray[np.generic]] = {}
        self._lease: Lease | None = None
        self._leaving = False
        self._released = Event()
        self._running: tuple[Unit, onnxruntime.RunOptions, Event] | None = None
        self._cancelled: Cancel | None = None
        self._faults = faults
        self._allows_faults = allows_faults
        self._leasable = True
        self._attending: Thread | None = None
        self._refused = 0
        self._lies: dict[str, OnnxModel] = {}
        self._device = Device(device) if device else nullcontext()
        self._busy: tuple[float, float | None] = (0.0, None)

    def serve(
        self, lease: Lease | None = None, at_heartbeat: Callable[[], None] = _nothing
    ) -> NoReturn:
        """Take part until the process ends; with a lease, for that one engine."""
        if lease is not None:
            self._take(lease)
            self._leasable = False
        self._attending = Thread(target=self._attend, args=(at_heartbeat,), daemon=True)
        self._attending.start()
        while True:
            try:
                frames = self.connection.receive()
            except EOFError:
                os._exit(0)
            try:
                self._do(*work_of(frames))
            except MessageError as error:
                self._refuse(error)

    @property
    def attends(self) -> bool:
        """Does the thread for what cannot wait run, or is it still to be started?"""
        return self._attending is None or self._attending.is_alive()

    @property
    def lease(self) -> Lease | None:
        """Whose instance it is now."""
        return self._lease

    @property
    def busy(self) -> float:
        """Seconds that it has spent on units so far."""
        busy, since = self._busy
        return busy if since is None else busy + time.monotonic() - since

    def leave(self, timeout: float) -> None:
        """Ask to be released, and wait until it is and its unit is done, or for `timeout` seconds.

        Returns sooner if there is no unit, and nobody who could release it answers.
        """
        end = time.monotonic() + timeout
        self._leaving = True
        if self._lease is not None:
            self._released.wait(min(RELEASE, timeout))
        while self._busy[1] is not None and time.monotonic() < end:
            time.sleep(0.01)

    # The main thread

    def _do(self, message: Lease | Unit | InjectFaults, rows: Sequence[Frame]) -> None:
        match message:
            case Unit() as unit:
                if self._lease is not None and unit.instance == self._lease.instance:
                    self._serve(unit, rows)
            case Lease() as lease:
                if not self._leasable:
                    raise MessageError("a lease, where the worker is another engine's for good")
                self._take(lease)
            case InjectFaults(plan, worker, start):
                if not self._allows_faults:
                    raise MessageError("faults, where the server was not started for any")
                self._faults = (start, WorkerFaults(plan, worker))

    def _take(self, lease: Lease) -> None:
        self.connection.take(lease)
        self._released.clear()
        self._lease = lease
        signatures = {role: model.signature for role, model in self._models.items()}
        hello = Hello(lease.instance, signatures, self.connection.units, self.connection.control)
        self.connection.report([encode(hello)])

    def _refuse(self, error: MessageError) -> None:
        self._refused += 1
        _log.debug("refused %s", error)

    def _serve(self, unit: Unit, rows: Sequence[Frame]) -> None:
        started = time.monotonic()
        self._busy = (self._busy[0], started)
        with self._device:
            outputs = self._run(unit, rows)
        self._busy = (self.busy, None)
        if isinstance(outputs, Failed):
            self.connection.report([encode(outputs)])
        else:
            finished = Finished(unit.instance, unit.unit, started, time.monotonic())
            self.connection.report([encode(finished), _bytes_of(outputs)])

    def _run(self, unit: Unit, rows: Sequence[Frame]) -> NDArray[np.generic] | Failed:
        began = time.monotonic()
        options = onnxruntime.RunOptions()
        options.log_severity_level = FATAL_ONLY
        # In this order here, and in the opposite one in _obey, no cancellation is missed.
        cut = Event()
        self._running = (unit, options, cut)
        if self._cancelled == Cancel(unit.instance, unit.unit):
            options.terminate = True
            cut.set()
        outputs: NDArray[np.generic] | Failed
        try:
            outputs = self._compute(unit, rows, options)
        except Exception as error:  # whatever it is, it is this unit's; the next may do better
            detail = "cancelled" if options.terminate else str(error)[:MAX_DETAIL]
            outputs = Failed(unit.instance, unit.unit, detail)
        if self._faults is not None and self._suffer(began, unit.role, cut, *self._faults):
            return Failed(unit.instance, unit.unit, "cancelled")
        return outputs

    def _compute(
        self, unit: Unit, rows: Sequence[Frame], options: onnxruntime.RunOptions
    ) -> NDArray[np.generic]:
        role = unit.role
        if role not in self._models:
            raise ValueError(f"{role!r} is no work of this worker's")
        model = self._models[role]
        kind = model.signature.kind(unit.sizes)
        batch = self._batch(role, kind, rows)
        if self._faults is None:
            outputs = model(batch, options)
        else:
            outputs = self._lied(role, batch, *self._faults)(batch, options)
        if outputs.shape != (len(rows), *kind.output.shape) or outputs.dtype != kind.output.dtype:
            raise ValueError(
                f"the model gave {outputs.dtype} {list(outputs.shape)} for {len(rows)} rows; "
                f"its output is {kind.output}"
            )
        return outputs

    def _batch(self, role: str, kind: Kind, rows: Sequence[Frame]) -> NDArray[np.generic]:
        if len(rows) == 1:
            return rows_of(rows[0], kind.input, 1)
        known = self._batches.get((role, kind.sizes))
        if known is None or len(known) < len(rows):
            known = self._batches[role, kind.sizes] = kind.input.zeros(len(rows))
        batch = known[: len(rows)]
        for i, row in enumerate(rows):
            batch[i] = rows_of(row, kind.input, 1)[0]
        return batch

    def _lied(
        self, role: str, batch: NDArray[np.generic], start: float, faults: WorkerFaults
    ) -> OnnxModel:
        """The model that the fault plan has the worker run, its own or not, if it survives."""
        first = tensors_in(batch)[0]
        firsts = first.reshape(len(batch), -1)[:, 0]
        if faults.poison is not None and (firsts == np.asarray(faults.poison, first.dtype)).any():
            os.kill(os.getpid(), signal.SIGKILL)
        for file in filter(os.path.exists, faults.files(time.monotonic() - start, role)):
            if file not in self._lies:
                signature = self._models[role].signature
                self._lies[file] = OnnxModel(Path(file), signature=signature)
            return self._lies[file]
        return self._models[role]

    def _suffer(
        self, began: float, role: str, cut: Event, start: float, faults: WorkerFaults
    ) -> bool:
        """Wait as the plan says; was the unit cancelled before it was done?"""
        busy_until = time.thread_time() + faults.computing_time(began - start, role)
        while time.thread_time() < busy_until and not cut.is_set():
            pass
        release = start + faults.release(began - start, time.monotonic() - start, role)
        if not cut.wait(max(0.0, release - time.monotonic())):
            return False
        cut_at = start + faults.cut(time.monotonic() - start)
        time.sleep(max(0.0, min(cut_at, release) - time.monotonic()))
        return cut_at < release

    # The other thread

    def _attend(self, at_heartbeat: Callable[[], None]) -> NoReturn:
        due = time.monotonic()
        refused = strangers = told = 0
        while True:
            wait = due - time.monotonic()
            if wait > 0:
                try:
                    frames = self.connection.receive_control(wait)
                except EOFError:
                    os._exit(0)
                try:
                    if frames is not None:
                        self._obey(control_of(frames))
                except MessageError as error:
                    refused += 1
                    _log.debug("refused %s", error)
                continue
            at_heartbeat()
            strangers += self.connection.strangers
            lease = self._lease
            news = refused + self._refused - told
            instance = "" if lease is None else lease.instance
            heartbeat = Heartbeat(instance, self._leaving, news, strangers)
            if self.connection.beat(lease, encode(heartbeat)):
                told, strangers = told + news, 0
            due = time.monotonic() + HEARTBEAT

    def _obey(self, message: Cancel | Release | Exit) -> None:
        lease = self._lease
        if lease is None or message.instance != lease.instance:
            return
        match message:
            case Cancel(_, id):
                self._cancelled = message
                running = self._running
                if running is not None and running[0].unit == id:
                    running[1].terminate = True
                    running[2].set()
            case Release():
                self._lease = None
                self._released.set()
            case Exit():
                os._exit(0)


def _bytes_of(outputs: NDArray[np.generic]) -> memoryview:
    return outputs.data if outputs.dtype.names is None else outputs.view(np.uint8).data


def main() -> NoReturn:
    """Serve the engine that started this process, until it or the engine ends."""
    # When to end is for the engine to say; a signal to a whole group of processes reaches it too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assigned = msgspec.json.decode(sys.argv[1], type=Assignment)

    def end_with_engine() -> None:
        if os.getppid() != assigned.parent:
            os._exit(0)

    try:
        models = {role: load(model) for role, model in assigned.models.items()}
    except (ModelError, OSError) as error:
        sys.exit(str(error))
    reached = assigned.reached
    if isinstance(reached, PipeEnds):
        connection: Connection = WorkerPipes(reached)
        lease = Lease(assigned.instance)
    else:
        # Only now: a worker beside its engine need not wait for ZeroMQ.
        from parity_models.serving.worker.sockets import WorkerSockets

        connection = WorkerSockets(reached.units, reached.control)
        lease = Lease(assigned.instance, reached.reports)
    worker = Worker(
        models, connection, device=assigned.device, allows_faults=assigned.allows_faults
    )
    worker.serve(lease, end_with_engine)


if __name__ == "__main__":
    main()
