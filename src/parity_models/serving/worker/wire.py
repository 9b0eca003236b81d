"""Messages between an engine and a worker process, and the worker's end of the streams.

A message is a msgpack header, one of the structs below, and the bytes of a tensor: the rows of a
Unit, or the outputs of a Finished. Nothing is pickled. Each worker has two streams (socket pairs,
or TCP between namespaces): `units` carries units, faults and results, in order; `control` carries
heartbeats, and messages that must not wait for a unit to end.

A message passes from process to process directly, without a thread in between. Either end notices
when the other is gone. On the stream, a message is the sizes of its header and of its tensor
(little-endian, 8 bytes each), the tensor, and the header, which comes last to keep tensors aligned.
"""

import os
import select
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from struct import Struct
from typing import Any, TypeVar

import msgspec

from parity_models.simulation.emulation import FaultPlan
from parity_models.tensors.signature import Signature, Sizes

HEARTBEAT = 0.2
"""Seconds between two heartbeats of a worker."""

_SIZES = Struct("<QQ")
_CHUNK, _LARGE_CHUNK = 2**16, 2**20
"""Bytes to receive at a time: usually, and at most while a larger message arrives."""
_MAX_HEADER = 2**20
"""Bytes; signatures of models with many inputs are the largest."""

Frame = bytes | memoryview


# Messages


class AssignedModel(msgspec.Struct, frozen=True):
    """A model for an instance. `content`: a file descriptor that a worker inherits, or a reference
    to Ray's object store; `sha256` is its hash.

    `name` is for people. `signature` is the model's; None: the one in its file.
    """

    content: Any
    sha256: str
    name: str
    signature: Signature | None = None


class Assignment(msgspec.Struct, frozen=True):
    """The worker's command line, as JSON.

    `instance` names it in listings of processes. `parent` is the engine's process: the worker ends
    with it. `models` are its models, by role. `streams` are the inherited descriptors of its ends
    of the control and the units stream; None: it connects to `address`, for control first.
    """

    instance: str
    parent: int
    models: dict[str, AssignedModel]
    streams: tuple[int, ...] | None
    address: tuple[str, int] | None = None


class Unit(msgspec.Struct, frozen=True, tag=True):
    """Run a batch of `rows` rows, which follow, for this role.

    `sizes` are those of the model's dynamic axes.
    """

    unit: int
    role: str
    rows: int
    sizes: Sizes = ()


class InjectFaults(msgspec.Struct, frozen=True, tag=True):
    """Faults of worker number `worker`, beginning at `start` of time.monotonic()."""

    plan: FaultPlan
    worker: int
    start: float


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """The outcome of the unit is no longer needed."""

    unit: int


class Hello(msgspec.Struct, frozen=True, tag=True):
    """The worker is warm; `models` are the signatures of its models, by role."""

    models: dict[str, Signature]


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The worker is alive."""


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The unit has run, until `ended` of the worker's time.monotonic(); its outputs follow."""

    unit: int
    ended: float


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The unit failed or was cancelled; `detail` is for the log."""

    unit: int
    detail: str


Report = Hello | Heartbeat | Finished | Failed

Message = TypeVar("Message")


class MessageError(ValueError):
    """A malformed message; its text is for the log."""


encode = msgspec.msgpack.Encoder().encode
WORK = msgspec.msgpack.Decoder(Unit | InjectFaults)
CONTROL = msgspec.msgpack.Decoder(Cancel)
REPORT = msgspec.msgpack.Decoder(Hello | Heartbeat | Finished | Failed)


def read(decoder: msgspec.msgpack.Decoder[Message], header: Frame) -> Message:
    """Decode a message's header. Raises MessageError."""
    try:
        return decoder.decode(header)
    except (ValueError, RecursionError) as error:  # msgspec's errors, and UnicodeDecodeError
        raise MessageError(f"a message that cannot be read: {error}") from error


# Streams


class WorkerStream:
    """The worker's end; its calls block."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        os.set_inheritable(end.fileno(), False)
        self._messages = Messages()
        self._received: deque[tuple[Frame, Frame]] = deque()
        self._poll = select.poll()
        self._poll.register(end.fileno(), select.POLLIN)

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds. Return whether there is something to receive."""
        return bool(self._received or self._poll.poll(1000 * timeout))

    def receive(self) -> tuple[Frame, Frame]:
        """Wait for the next message; return its header and its tensor.

        Raises EOFError if the engine is gone.
        """
        while not self._received:
            try:
                data = self._socket.recv(self._messages.wanted)
            except OSError:
                data = b""
            if not data:
                raise EOFError("the engine is gone")
            self._received += self._messages.of(data)
        return self._received.popleft()

    def send(self, header: bytes, tensor: Frame = b"") -> None:
        """Send a message, if the engine is still there."""
        parts, size = parts_of(header, (tensor,))
        with suppress(OSError):
            sent = self._socket.sendmsg(parts)
            if sent < size:
                self._socket.sendall(b"".join(parts)[sent:])


def parts_of(header: bytes, tensor: Sequence[Frame]) -> tuple[list[Frame], int]:
    """Return a message in pieces, and its size in bytes."""
    size = 0
    for each in tensor:
        size += memoryview(each).nbytes
    sizes = _SIZES.pack(len(header), size)
    return [sizes, *tensor, header], len(sizes) + size + len(header)


class Messages:
    """Cuts messages out of a stream that arrives in pieces of any size."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._needed = 0
        self.wanted = _CHUNK
        """Maximum number of bytes to receive next."""

    def of(self, data: bytes) -> list[tuple[Frame, Frame]]:
        """Return header and tensor of the messages that this piece completes.

        Raises MessageError.
        """
        messages: list[tuple[Frame, Frame]] = []
        stream: bytes | bytearray = data
        if self._rest:
            self._rest += data
            stream = self._rest
        if len(stream) < self._needed:
            self.wanted = min(max(_CHUNK, self._needed - len(stream)), _LARGE_CHUNK)
            return messages
        view = memoryview(stream)
        self._rest, self._needed = bytearray(), 0
        while len(view) >= _SIZES.size:
            header, tensor = _SIZES.unpack_from(view)
            if not 0 < header <= _MAX_HEADER:
                raise MessageError(f"a message with a header of {header} bytes")
            at = _SIZES.size + tensor
            self._needed = at + header
            if len(view) < self._needed:
                break
            messages.append((view[at : self._needed], view[_SIZES.size : at]))
            view, self._needed = view[self._needed :], 0
        self._rest += view
        self.wanted = min(max(_CHUNK, self._needed - len(self._rest)), _LARGE_CHUNK)
        return messages
