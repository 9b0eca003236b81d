"""A worker process: an instance of the local engine. Actors on a Ray cluster use its `Runner`, too.

One thread receives units, computes and reports: no query passes from thread to thread. A second
thread sends heartbeats and cancels units, which cannot wait for a unit to end.
"""

import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from mmap import ACCESS_READ, mmap
from pathlib import Path
from threading import Event, Lock, Thread
from typing import NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.bundle.onnx_model import OnnxModel, check_sha256, run_options
from parity_models.errors import ModelError
from parity_models.serving.worker import wire
from parity_models.simulation.emulation import FaultPlan, WorkerFaults
from parity_models.tensors.signature import pack, tensors_in

MAX_DETAIL = 1000
"""Maximum number of an error's characters that are reported."""


class Runner:
    """Runs units of `models`, by role: `run` on one thread, `cancel` on another."""

    def __init__(self, models: Mapping[str, OnnxModel]) -> None:
        self._models = models
        self._lock = Lock()
        """Held by `run` and `cancel` while they change what runs."""
        self._running: int | None = None
        self._cancelled: int | None = None
        self._renew()
        self._faults: tuple[float, WorkerFaults] | None = None
        self._corrupt_models: dict[str, OnnxModel] = {}

    def run(
        self, unit: wire.Unit, rows: wire.Frame
    ) -> tuple[wire.Finished | wire.Failed, wire.Frame]:
        """Run a unit on rows (n, *query_shape). Return its report, and the bytes of its outputs."""
        started = time.monotonic()
        with self._lock:
            if self._options.terminate:
                self._renew()
            self._running = unit.unit
            if self._cancelled == unit.unit:
                self._end()
        outputs: wire.Frame = b""
        detail: str | None = None
        try:
            outputs = pack(self._compute(unit, rows))
        except Exception as error:  # an error of this unit only; the next may succeed
            detail = "cancelled" if self._options.terminate else str(error)[:MAX_DETAIL]
        if self._faults is not None and self._apply_faults(started, unit.role, *self._faults):
            detail = "cancelled"
        with self._lock:
            self._running = None
        if detail is not None:
            return wire.Failed(unit.unit, detail), b""
        return wire.Finished(unit.unit, time.monotonic()), outputs

    def cancel(self, unit: int) -> None:
        """End the unit early, if it runs or is the next to run."""
        with self._lock:
            self._cancelled = unit
            if self._running == unit:
                self._end()

    def _end(self) -> None:
        self._options.terminate = True
        self._ended.set()

    def _renew(self) -> None:
        self._options = run_options()
        self._ended = Event()

    def inject(self, plan: FaultPlan, worker: int, start: float) -> None:
        """Inject the faults of worker number `worker` of a plan, beginning at `start` of
        time.monotonic()."""
        self._faults = (start, WorkerFaults(plan, worker))

    def _compute(self, unit: wire.Unit, rows: wire.Frame) -> NDArray[np.generic]:
        role = unit.role
        if role not in self._models:
            raise ValueError(f"this worker does not run {role!r}")
        model = self._models[role]
        kind = model.signature.kind(unit.sizes)
        batch = kind.input.unpack(rows, unit.rows)
        if self._faults is not None:
            model = self._faulty_model(role, batch, *self._faults)
        outputs = kind.output.join(model(kind.input.split(batch), self._options))
        if outputs.shape != (unit.rows, *kind.output.shape) or outputs.dtype != kind.output.dtype:
            raise ValueError(
                f"the model gave {outputs.dtype} {list(outputs.shape)} for {unit.rows} rows; "
                f"its output is {kind.output}"
            )
        return outputs

    def _faulty_model(
        self, role: str, batch: NDArray[np.generic], start: float, faults: WorkerFaults
    ) -> OnnxModel:
        """Return the model that the fault plan runs, or end the process if the plan says so."""
        first = tensors_in(batch)[0]
        firsts = first.reshape(len(batch), -1)[:, 0]
        if faults.poison is not None and (firsts == np.asarray(faults.poison, first.dtype)).any():
            os.kill(os.getpid(), signal.SIGKILL)
        for file in filter(os.path.exists, faults.files(time.monotonic() - start, role)):
            if file not in self._corrupt_models:
                signature = self._models[role].signature
                self._corrupt_models[file] = OnnxModel(Path(file), signature=signature)
            return self._corrupt_models[file]
        return self._models[role]

    def _apply_faults(self, started: float, role: str, start: float, faults: WorkerFaults) -> bool:
        """Wait as the plan says. Return whether the unit was cancelled meanwhile."""
        release = start + faults.release(started - start, time.monotonic() - start, role)
        if not self._ended.wait(max(0.0, release - time.monotonic())):
            return False
        cut_at = start + faults.cut(time.monotonic() - start)
        time.sleep(max(0.0, min(cut_at, release) - time.monotonic()))
        return cut_at < release


def load(assigned: wire.AssignedModel) -> OnnxModel:
    """Load a model and warm it up.

    Raises ModelError if its content is not the assigned one or cannot be run, and OSError if it
    cannot be read.
    """
    # Processes that inherit a descriptor share its position, which a mapping does not use.
    with mmap(assigned.content, 0, access=ACCESS_READ) as copy:
        content = copy[:]
    check_sha256(assigned.name, assigned.sha256, hashlib.sha256(content).hexdigest())
    try:
        model = OnnxModel(content, signature=assigned.signature)
    except ModelError as error:
        raise ModelError(f"{assigned.name}: {error}") from error
    return warm_model(model, assigned.name)


def warm_model(model: OnnxModel, name: str) -> OnnxModel:
    """Run the model, called `name`, once, and cancel a run: the first run, and the first cancelled
    one, are slow, and allocate memory that stays.

    Raises ModelError if it does not run.
    """
    layout = model.signature.largest.input
    row = layout.split(layout.zeros(1))
    try:
        model(row)
    except Exception as error:  # ONNX Runtime's errors share no base class but this
        raise ModelError(f"{name} does not run on a row of zeros: {error}") from error
    cancelled = run_options()
    cancelled.terminate = True
    with suppress(Exception):
        model(row, cancelled)
    return model


def serve(
    runner: Runner, units: wire.WorkerStream, control: wire.WorkerStream, parent: int
) -> None:
    """Serve the engine at the other end until it is gone. Raises MessageError."""
    Thread(target=_control_loop, args=(runner, control, parent), daemon=True).start()
    while True:
        try:
            header, rows = units.receive()
        except EOFError:
            return
        match message := wire.read(wire.WORK, header):
            case wire.Unit():
                report, outputs = runner.run(message, rows)
                units.send(wire.encode(report), outputs)
            case wire.InjectFaults(plan, worker, start):
                runner.inject(plan, worker, start)


def _control_loop(runner: Runner, control: wire.WorkerStream, parent: int) -> NoReturn:
    heartbeat = wire.encode(wire.Heartbeat())
    due = time.monotonic()
    while True:
        wait = due - time.monotonic()
        if wait <= 0:
            if os.getppid() != parent:
                os._exit(0)
            control.send(heartbeat)
            due = time.monotonic() + wire.HEARTBEAT
        elif control.wait(wait):
            try:
                header, _ = control.receive()
            except EOFError:
                os._exit(0)
            runner.cancel(wire.read(wire.CONTROL, header).unit)


def _connect(assigned: wire.Assignment) -> list[wire.WorkerStream]:
    """Return the worker's ends of the streams, for control and for units."""
    if assigned.streams is not None:
        ends = [socket.socket(fileno=each) for each in assigned.streams]
    else:
        assert assigned.address is not None
        ends = [socket.create_connection(assigned.address) for _ in range(2)]
        for each in ends:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return [wire.WorkerStream(each) for each in ends]


def main() -> None:
    """Serve the engine that started this process, until it or the engine ends."""
    # The engine says when to end; a signal to a whole group of processes reaches it, too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # If memory runs out, a worker ends before the process that all clients are connected to.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("500")
    assigned = msgspec.json.decode(sys.argv[1], type=wire.Assignment)
    try:
        models = {role: load(model) for role, model in assigned.models.items()}
    except (ModelError, OSError) as error:
        sys.exit(str(error))
    control, units = _connect(assigned)
    units.send(wire.encode(wire.Hello({role: model.signature for role, model in models.items()})))
    serve(Runner(models), units, control, assigned.parent)
    os._exit(0)


if __name__ == "__main__":
    main()
