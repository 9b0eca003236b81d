"""What an engine and its workers say to each other, and where.

A message is a msgpack header, one of the structs below, and raw tensors in frames of their own:
a frame for each row of a Unit, one frame for the outputs of a Finished. Nothing is pickled.
There are two ways to a worker, and what it reports comes back by them (its hello and results by
the first, heartbeats by the second) or, from a worker with sockets, by a third, which all share:

- units (for the worker's computing thread), and leases and faults, which hold for all units after
  them
- control (for the worker's other thread): what must not wait for a unit to end
- reports (for the engine)

They are pipes of a worker beside its engine (pipe.py), and ZeroMQ's sockets elsewhere (sockets.py).

A worker works for one engine at a time: the one whose lease it has, as the instance that the
lease names. What is meant for another instance came too late, and is ignored. A message that is not
as it should be is refused: it is counted, and changes nothing.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.faults import FaultPlan
from parity_models.models.signature import Signature, Sizes
from parity_models.models.tensor import Layout

HEARTBEAT = 0.2
"""Seconds between two heartbeats of a worker."""

Frame = bytes | memoryview
"""A part of a message."""


class AssignedModel(msgspec.Struct, frozen=True):
    """A model for a worker: a file descriptor that it inherits, and the hash of the content.

    `name` is for people. `signature` is the model's; None: as the file says itself.
    """

    descriptor: int
    sha256: str
    name: str
    signature: Signature | None = None


class PipeEnds(msgspec.Struct, frozen=True, tag=True):
    """A worker's ends of its pipes: file descriptors that it inherits."""

    units: int
    control: int


class Endpoints(msgspec.Struct, frozen=True, tag=True):
    """Where a worker listens, at ports that may be left open, as *; and where its engine does."""

    units: str
    control: str
    reports: str


class Assignment(msgspec.Struct, frozen=True):
    """The worker's command line, as JSON: who it is and what it serves, by role.

    `parent` is the engine's process: when that is gone, so is the worker. `device`: see Placement.
    It obeys InjectFaults only if it `allows_faults`.
    """

    instance: str
    parent: int
    models: dict[str, AssignedModel]
    reached: PipeEnds | Endpoints
    device: str | None
    allows_faults: bool = False


_ADDRESS = r"([0-9.]+|\[[0-9a-fA-F:.]+(%[0-9A-Za-z]+)?\])"

Endpoint = Annotated[str, msgspec.Meta(pattern=rf"\Atcp://{_ADDRESS}:[0-9]{{1,5}}\Z")]
"""Where a socket is bound: an IP address and a port."""


class Lease(msgspec.Struct, frozen=True, tag=True):
    """From now on the worker is this instance, of the engine that pulls `reports`, where it has no
    pipe."""

    instance: str
    reports: Endpoint | None = None


class Unit(msgspec.Struct, frozen=True, tag=True):
    """Run a batch for this role; each row follows in a frame of its own.

    `sizes` are those of the model's dynamic axes.
    """

    instance: str
    unit: int
    role: str
    sizes: Sizes = ()


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Nobody needs the outcome of the unit any more."""

    instance: str
    unit: int


class InjectFaults(msgspec.Struct, frozen=True, tag=True):
    """Faults of worker number `worker`, beginning at `start` of CLOCK_MONOTONIC."""

    plan: FaultPlan
    worker: int
    start: float


class Release(msgspec.Struct, frozen=True, tag=True):
    """The lease is over; another engine may have the worker."""

    instance: str


class Exit(msgspec.Struct, frozen=True, tag=True):
    """End the process."""

    instance: str


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The worker is warm, and listens at `units` and `control` unless it has pipes; `models` are
    the signatures of its models, by role."""

    instance: str
    models: dict[str, Signature]
    units: Endpoint | None
    control: Endpoint | None


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The worker is alive; `leaving`: it asks to be released once its unit is done.

    Since the last one it has refused so many messages, and kept out so many `strangers`.
    """

    instance: str
    leaving: bool = False
    refused: int = 0
    strangers: int = 0


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The unit has run, from `started` to `ended` of the worker's time.monotonic(); its outputs
    follow in one frame."""

    instance: str
    unit: int
    started: float
    ended: float


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The unit has not run to its end, or was cancelled; `detail` is for the log."""

    instance: str
    unit: int
    detail: str


Control = Cancel | Release | Exit

Report = Hello | Heartbeat | Finished | Failed


class MessageError(ValueError):
    """A message that is not as it should be; its text is for the log."""


encode = msgspec.msgpack.Encoder().encode

_Message = TypeVar("_Message")
_decode_work = msgspec.msgpack.Decoder(Lease | Unit | InjectFaults).decode
_decode_control: Callable[[Any], Cancel | Release | Exit] = msgspec.msgpack.Decoder(
    Cancel | Release | Exit
).decode
_decode_report = msgspec.msgpack.Decoder(Report).decode


def work_of(
    frames: Sequence[Frame],
) -> tuple[Lease | Unit | InjectFaults, Sequence[Frame]]:
    """What a worker is told beside units, or a unit and the frames of its rows. Raises
    MessageError."""
    return _message(frames, _decode_work, Unit)


def control_of(frames: Sequence[Frame]) -> Control:
    """What must not wait for a unit to end. Raises MessageError."""
    message, _ = _message(frames, _decode_control, None)
    return message


def report_of(frames: Sequence[Frame]) -> tuple[Report, Sequence[Frame]]:
    """A report, and the frame of the outputs of one that is Finished. Raises MessageError."""
    report, tensors = _message(frames, _decode_report, Finished)
    if len(tensors) > 1:
        raise MessageError(f"outputs come in one frame, not in {len(tensors)}")
    return report, tensors


def _message(
    frames: Sequence[Frame], decode: Callable[[Any], _Message], with_tensors: type | None
) -> tuple[_Message, Sequence[Frame]]:
    header, *tensors = frames
    try:
        message = decode(header)
    except (ValueError, RecursionError) as error:  # msgspec's errors, and UnicodeDecodeError
        raise MessageError(f"a message that cannot be read: {error}") from error
    if bool(tensors) != isinstance(message, with_tensors or ()):
        raise MessageError(f"{type(message).__name__} with {len(tensors)} frames of tensors")
    return message, tensors


def rows_of(frame: Frame, layout: Layout, rows: int) -> NDArray[np.generic]:
    """The rows (rows, *shape) in a frame, not copied if need not be. Raises MessageError if it has
    another size."""
    size = rows * layout.row_bytes
    if memoryview(frame).nbytes != size:
        raise MessageError(
            f"{memoryview(frame).nbytes} bytes, where {rows} rows of {layout} have {size}"
        )
    values = np.frombuffer(frame, layout.dtype).reshape(rows, *layout.shape)
    # ZeroMQ hands out small messages where they lie in its receive buffer, at any address.
    return values if values.flags.aligned else values.copy()
