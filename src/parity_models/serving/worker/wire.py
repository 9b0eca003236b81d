"""Messages between an engine and a worker process.

A message is a msgpack header, one of the structs below, and raw tensors in frames of their own:
a frame for each row of a Unit, one frame for the outputs of a Finished. Nothing is pickled.
Each worker has two streams (stream.py): `units` carries units, faults and results, in order;
`control` carries heartbeats, and messages that must not wait for a unit to end.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.emulation import FaultPlan
from parity_models.models.signature import Layout, Signature, Sizes

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


class Assignment(msgspec.Struct, frozen=True):
    """The worker's command line, as JSON.

    `instance` names it to those who look at processes. `parent` is the engine's process: when that
    is gone, so is the worker. `models` are its models, by role. `streams` are the descriptors of
    its ends of the two streams, which it inherits; None: it connects to `address`, once for each.
    `device`: see Placement.
    """

    instance: str
    parent: int
    models: dict[str, AssignedModel]
    streams: tuple[int, ...] | None
    address: tuple[str, int] | None = None
    device: str | None = None


class Unit(msgspec.Struct, frozen=True, tag=True):
    """Run a batch for this role; each row follows in a frame of its own.

    `sizes` are those of the model's dynamic axes.
    """

    unit: int
    role: str
    sizes: Sizes = ()


class InjectFaults(msgspec.Struct, frozen=True, tag=True):
    """Faults of worker number `worker`, beginning at `start` of time.monotonic()."""

    plan: FaultPlan
    worker: int
    start: float


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """The outcome of the unit is no longer needed."""

    unit: int


class Exit(msgspec.Struct, frozen=True, tag=True):
    """End the process."""


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The worker is warm; `models` are the signatures of its models, by role."""

    models: dict[str, Signature]


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The worker is alive."""


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The unit has run, until `ended` of the worker's time.monotonic(); its outputs follow in one
    frame."""

    unit: int
    ended: float


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The unit has not run to its end, or was cancelled; `detail` is for the log."""

    unit: int
    detail: str


Work = Unit | InjectFaults
Control = Cancel | Exit
Report = Hello | Heartbeat | Finished | Failed


class MessageError(ValueError):
    """A malformed message; its text is for the log."""


encode = msgspec.msgpack.Encoder().encode

_Message = TypeVar("_Message")
_decode_work: Callable[[Any], Work] = msgspec.msgpack.Decoder(Unit | InjectFaults).decode
_decode_control: Callable[[Any], Control] = msgspec.msgpack.Decoder(Cancel | Exit).decode
_decode_report: Callable[[Any], Report] = msgspec.msgpack.Decoder(
    Hello | Heartbeat | Finished | Failed
).decode


def work_of(frames: Sequence[Frame]) -> tuple[Work, Sequence[Frame]]:
    """Decode a message of the stream `units`: it, and the frames of a unit's rows.

    Raises MessageError.
    """
    return _message(frames, _decode_work, Unit)


def control_of(frames: Sequence[Frame]) -> Control:
    """Decode a message of the stream `control`. Raises MessageError."""
    message, _ = _message(frames, _decode_control, None)
    return message


def report_of(frames: Sequence[Frame]) -> tuple[Report, Frame | None]:
    """Decode a report: it, and the frame of the outputs of one that is Finished.

    Raises MessageError.
    """
    report, tensors = _message(frames, _decode_report, Finished)
    if len(tensors) > 1:
        raise MessageError(f"outputs come in one frame, not in {len(tensors)}")
    return report, tensors[0] if tensors else None


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
    """Return the rows (rows, *shape) in a frame, without a copy where they are aligned.

    Raises MessageError if the frame has another size.
    """
    size = rows * layout.row_bytes
    if memoryview(frame).nbytes != size:
        raise MessageError(
            f"{memoryview(frame).nbytes} bytes, where {rows} rows of {layout} have {size}"
        )
    values = np.frombuffer(frame, layout.dtype).reshape(rows, *layout.shape)
    # A message may begin at any address of a receive buffer.
    return values if values.flags.aligned else values.copy()


def bytes_of(rows: NDArray[Any]) -> memoryview:
    """Return the bytes of rows, without a copy where they are contiguous."""
    whole = np.ascontiguousarray(rows)
    return whole.data if rows.dtype.names is None else whole.view(np.uint8).data
