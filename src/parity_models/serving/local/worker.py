"""A worker process: one instance of the local engine.

Its main thread takes a unit, computes, reports, and nothing else: a query passes from thread to
thread nowhere. A second thread does what cannot wait for a unit to end: it sends heartbeats,
cancels, exits when told, and sees to it that no worker outlives its engine.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Thread
from typing import NoReturn

import msgspec
import numpy as np
import onnxruntime
import zmq
from numpy.typing import NDArray

from parity_models.errors import ModelError
from parity_models.faults import WorkerFaults
from parity_models.models.onnx_model import OnnxModel
from parity_models.serving.local.device import Device
from parity_models.serving.local.wire import (
    HEARTBEAT,
    Assignment,
    Cancel,
    Exit,
    Failed,
    Finished,
    Heartbeat,
    Hello,
    InjectFaults,
    ModelTensors,
    Unit,
    bind,
    decode_control,
    decode_work,
    encode,
    rows_of,
)

MAX_DETAIL = 1000
"""Characters of an error that are reported."""

_FATAL_ONLY = 4


class Worker:
    """Serves the models of its assignment. Raises ModelError for one that does not run."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._models = {work: _warm(path) for work, path in assignment.models.items()}
        self._batches: dict[str, NDArray[np.generic]] = {}
        self._running: tuple[int, onnxruntime.RunOptions] | None = None
        self._cancelled: int | None = None
        self._faults: tuple[float, WorkerFaults] | None = None
        self._device = Device(assignment.device) if assignment.device else nullcontext()
        context = zmq.Context()
        self._units = context.socket(zmq.PULL)
        units = bind(self._units, assignment.units)
        self._control = context.socket(zmq.PULL)
        control = bind(self._control, assignment.control)
        # A socket belongs to one thread, so each of the two has its own.
        self._reports, self._heartbeats = context.socket(zmq.PUSH), context.socket(zmq.PUSH)
        for socket in (self._reports, self._heartbeats):
            socket.connect(assignment.reports)
        tensors = {work: ModelTensors(m.input, m.output) for work, m in self._models.items()}
        self._hello = Hello(assignment.instance, tensors, units, control)

    def serve(self) -> NoReturn:
        """Take part until the process ends."""
        Thread(target=self._attend, daemon=True).start()
        self._reports.send(encode(self._hello))
        while True:
            header, *rows = self._units.recv_multipart(copy=False)
            match decode_work(header.buffer):
                case Unit() as unit:
                    with self._device:
                        report = self._run(unit, rows)
                    self._reports.send_multipart(report, copy=False)
                case InjectFaults(plan, worker, start):
                    self._faults = (start, WorkerFaults(plan, worker))

    # The main thread

    def _run(self, unit: Unit, rows: list[zmq.Frame]) -> Sequence[bytes | memoryview]:
        began = time.monotonic()
        options = onnxruntime.RunOptions()
        options.log_severity_level = _FATAL_ONLY
        # In this order here, and in the opposite one in _cancel, no cancellation is missed.
        self._running = (unit.unit, options)
        if self._cancelled == unit.unit:
            options.terminate = True
        instance = self._assignment.instance
        report: Sequence[bytes | memoryview]
        try:
            outputs = self._compute(unit.work, rows, options)
        except Exception as error:  # whatever it is, it is this unit's; the next may do better
            detail = "cancelled" if options.terminate else str(error)[:MAX_DETAIL]
            report = (encode(Failed(instance, unit.unit, detail)),)
        else:
            report = (encode(Finished(instance, unit.unit)), outputs.data)
        if self._faults is not None:
            self._suffer(began, unit.work, *self._faults)
        return report

    def _compute(
        self, work: str, rows: list[zmq.Frame], options: onnxruntime.RunOptions
    ) -> NDArray[np.generic]:
        model = self._models[work]
        outputs = model(self._batch(work, rows), options)
        if outputs.shape != (len(rows), *model.output.shape) or outputs.dtype != model.output.dtype:
            raise ValueError(
                f"the model gave {outputs.dtype} {list(outputs.shape)} for {len(rows)} rows; "
                f"its output is {model.output}"
            )
        return outputs

    def _batch(self, work: str, rows: list[zmq.Frame]) -> NDArray[np.generic]:
        spec = self._models[work].input
        if len(rows) == 1:
            return rows_of(rows[0], spec)
        if work not in self._batches or len(self._batches[work]) < len(rows):
            self._batches[work] = spec.zeros(len(rows))
        batch = self._batches[work][: len(rows)]
        for place, row in zip(batch, rows, strict=True):
            place[...] = rows_of(row, spec)[0]
        return batch

    def _suffer(self, began: float, work: str, start: float, faults: WorkerFaults) -> None:
        busy_until = time.thread_time() + faults.computing_time(began - start, work)
        while time.thread_time() < busy_until:
            pass
        release = start + faults.release(began - start, time.monotonic() - start, work)
        time.sleep(max(0.0, release - time.monotonic()))

    # The other thread

    def _attend(self) -> NoReturn:
        due = time.monotonic()
        while True:
            wait = round(1000 * (due - time.monotonic()))
            if wait > 0:
                if self._control.poll(wait):
                    self._obey(self._control.recv())
                continue
            if os.getppid() != self._assignment.parent:
                shutil.rmtree(self._assignment.directory, ignore_errors=True)
                os._exit(0)
            with suppress(zmq.Again):  # the engine has yet to take many earlier ones
                self._heartbeats.send(encode(Heartbeat(self._assignment.instance)), zmq.NOBLOCK)
            due = time.monotonic() + HEARTBEAT

    def _obey(self, message: bytes) -> None:
        match decode_control(message):
            case Cancel(unit):
                self._cancelled = unit
                running = self._running
                if running is not None and running[0] == unit:
                    running[1].terminate = True
            case Exit():
                os._exit(0)


def _warm(path: str) -> OnnxModel:
    """The model, after its first run, which is slower than the others."""
    model = OnnxModel(Path(path))
    try:
        model(model.input.zeros(1))
    except Exception as error:  # ONNX Runtime's errors share no base class but this
        raise ModelError(f"{path} does not run on a row of zeros: {error}") from error
    return model


def main() -> NoReturn:
    # When to end is for the engine to say; a signal to a whole group of processes reaches it too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        worker = Worker(msgspec.json.decode(sys.argv[1], type=Assignment))
    except ModelError as error:
        sys.exit(str(error))
    worker.serve()


if __name__ == "__main__":
    main()
