"""A worker as its engine reaches it: the channels to it, its models, and the unit it has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import zmq
from numpy.typing import NDArray

from parity_models.models.signature import Signature
from parity_models.models.tensor import Layout
from parity_models.serving.worker.wire import (
    Cancel,
    Exit,
    Frame,
    Hello,
    InjectFaults,
    Lease,
    Release,
    Unit,
    encode,
)

ZmqContext = zmq.Context[zmq.Socket[bytes]]


@dataclass(slots=True)
class RunningUnit:
    """A unit of so many rows that a worker has had for `age` of the engine's ticks."""

    unit: int
    output: Layout
    rows: int
    age: int = 0


class Channel(Protocol):
    """How messages get to a worker."""

    def send(self, frames: Sequence[Frame]) -> None:
        """Send a message, without waiting."""

    def close(self, linger: int = 0) -> None:
        """Send nothing more; what was sent goes on its way for up to `linger` ms."""


class SocketChannel:
    """A ZeroMQ socket as a channel."""

    def __init__(self, context: ZmqContext) -> None:
        self.socket = context.socket(zmq.PUSH)

    def send(self, frames: Sequence[Frame]) -> None:
        self.socket.send_multipart(frames, zmq.NOBLOCK, copy=False)

    def close(self, linger: int = 0) -> None:
        self.socket.close(linger=linger)


class WorkerLink:
    """What an engine has of a worker that serves it as `instance` and runs `roles`.

    `units` is the channel for units, and for what holds for all units after it; `control` the one
    for what must not wait for a unit to end. `joined` once it has said hello. `ended` once what it
    says no longer counts. `silence` is how many of the engine's ticks ago it was heard of.
    """

    def __init__(
        self, instance: str, roles: frozenset[str], units: Channel, control: Channel
    ) -> None:
        self.instance = instance
        self.roles = roles
        self.joined = False
        self.ended = False
        self.silence = 0
        self.running: RunningUnit | None = None
        self._models: dict[str, Signature] = {}
        self._units = units
        self._control = control

    def join(self, hello: Hello) -> None:
        """The worker has its models ready."""
        self._models = hello.models
        self.joined = True

    def run(self, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> str | None:
        """Send it a unit; returns what is wrong with the unit, if something is."""
        model = self._models.get(role)
        if model is None:
            return f"instance {self.instance} does not run {role}"
        try:
            kind = model.plain or model.kind_of(rows[0])
        except ValueError as error:
            return f"{role} {error}"
        for row in rows:
            if not kind.input.fits(row):
                return f"{role} takes {kind.input}, got {row.dtype} {list(row.shape)}"
        self.running = RunningUnit(unit, kind.output, len(rows))
        frames: list[Frame] = [encode(Unit(self.instance, unit, role, kind.sizes))]
        frames += [_bytes_of(row) for row in rows]
        self._units.send(frames)
        return None

    def tell_before_units(self, message: Lease | InjectFaults) -> None:
        """Send it what holds for all units that it is sent from now on."""
        self._units.send([encode(message)])

    def tell(self, message: Cancel | Release | Exit) -> None:
        """Send it what must not wait for its unit to end."""
        self._control.send([encode(message)])

    def close(self, linger: int = 0) -> None:
        """Close the channels; what it was told goes on its way for up to `linger` ms."""
        self._units.close()
        self._control.close(linger)


def _bytes_of(row: NDArray[Any]) -> memoryview:
    """What a row holds, where it lies if it lies in one piece."""
    whole = np.ascontiguousarray(row)
    return whole.data if row.dtype.names is None else whole.view(np.uint8).data
