"""A worker as its engine reaches it: the sockets to it, its models, and the unit it has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from parity_models.models.tensor import TensorSpec
from parity_models.serving.local.wire import (
    Cancel,
    Exit,
    Hello,
    InjectFaults,
    Lease,
    ModelTensors,
    Release,
    Unit,
    encode,
)

Context = zmq.Context[zmq.Socket[bytes]]


@dataclass(slots=True)
class RunningUnit:
    """A unit of so many rows that a worker has had for `age` of the engine's ticks."""

    unit: int
    output: TensorSpec
    rows: int
    age: int = 0


class WorkerLink:
    """What an engine has of a worker that serves it as `instance` and runs `works`.

    `joined` once it has said hello. `ended` once what it says no longer counts. `silence` is how
    many of the engine's ticks ago it was heard of.
    """

    def __init__(self, instance: str, works: frozenset[str], context: Context) -> None:
        self.instance = instance
        self.works = works
        self.joined = False
        self.ended = False
        self.silence = 0
        self.running: RunningUnit | None = None
        self._models: dict[str, ModelTensors] = {}
        self._units, self._control = context.socket(zmq.PUSH), context.socket(zmq.PUSH)

    def connect(self, units: str, control: str) -> None:
        """The worker listens there."""
        self._units.connect(units)
        self._control.connect(control)

    def join(self, hello: Hello) -> None:
        """The worker has its models ready."""
        self._models = hello.models
        self.joined = True

    def run(self, unit: int, work: str, rows: Sequence[NDArray[Any]]) -> str | None:
        """Send it a unit; returns what is wrong with the unit, if something is."""
        model = self._models.get(work)
        if model is None:
            return f"instance {self.instance} does not run {work}"
        for row in rows:
            if row.shape != model.input.shape or row.dtype != model.input.dtype:
                return f"{work} takes {model.input}, got {row.dtype} {list(row.shape)}"
        self.running = RunningUnit(unit, model.output, len(rows))
        frames: list[bytes | memoryview] = [encode(Unit(self.instance, unit, work))]
        frames += [np.ascontiguousarray(row).data for row in rows]
        self._units.send_multipart(frames, zmq.NOBLOCK, copy=False)
        return None

    def tell_before_units(self, message: Lease | InjectFaults) -> None:
        """Send it what holds for all units that it is sent from now on."""
        self._units.send(encode(message), zmq.NOBLOCK)

    def tell(self, message: Cancel | Release | Exit) -> None:
        """Send it what must not wait for its unit to end."""
        self._control.send(encode(message), zmq.NOBLOCK)

    def close(self, linger: int = 0) -> None:
        """Close the sockets; what it was told goes on its way for up to `linger` ms."""
        self._units.close(linger=0)
        self._control.close(linger=linger)
