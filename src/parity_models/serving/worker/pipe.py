"""How an engine and a worker beside it talk: pairs of sockets, of which the worker inherits ends.

Nobody else can write to them, and a message passes from process to process at once: through
ZeroMQ, a thread of each would hand it on, which takes several times as much processor time as a
small unit's message is worth. Whoever of the two is left alone hears of it.

A message is the sizes of its frames, preceded by their number (little-endian, 8 bytes each), the
tensors, and the header, which comes last so that tensors lie at addresses that suit them.
"""

import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from struct import Struct, pack, unpack_from
from typing import TYPE_CHECKING

from parity_models.serving.worker.wire import Frame, Lease, MessageError, PipeEnds

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop  # which workers do without

_NUMBER = Struct("<Q")
_AT_ONCE = 2**16
"""Bytes that are received at once."""
_PARTS = 512
"""Frames that are sent without being joined; the system takes 1,024."""


class EngineEnd:
    """The end of an engine, on whose event `loop` it lives: a Channel.

    Once the worker has its end, `heard` is called with each message, or `broken` once, after which
    nothing more is read. Raises OSError where the system has no sockets left.
    """

    def __init__(
        self,
        loop: "AbstractEventLoop",
        heard: Callable[[Sequence[Frame]], None],
        broken: Callable[[MessageError], None],
    ) -> None:
        self._heard = heard
        self._broken = broken
        self._loop = loop
        self._socket, self._other = socket.socketpair()
        self._socket.setblocking(False)
        self._messages = Messages()
        self._unsent = b""

    @property
    def inherited(self) -> int:
        """The descriptor of the worker's end."""
        return self._other.fileno()

    def handed_over(self) -> None:
        """The worker has its end."""
        self._other.close()
        self._loop.add_reader(self._socket.fileno(), self._receive)

    def send(self, frames: Sequence[Frame]) -> None:
        """Send a message; what the system does not take at once is sent when it does."""
        parts = parts_of(frames)
        size = sum(map(len, parts))
        sent = 0
        if not self._unsent:
            try:
                sent = self._socket.sendmsg(parts)
            except BlockingIOError:
                pass
            except OSError:  # the worker is gone, as will be noticed
                return
        if sent < size:
            if not self._unsent:
                self._loop.add_writer(self._socket.fileno(), self._send_rest)
            self._unsent += b"".join(parts)[sent:]

    def close(self, linger: int = 0) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._other.close()

    def _send_rest(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsent = b""
        if not self._unsent:
            self._loop.remove_writer(self._socket.fileno())

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # the worker is gone, as will be noticed
            self._loop.remove_reader(self._socket.fileno())
            return
        try:
            for frames in self._messages.of(data):
                self._heard(frames)
        except MessageError as error:
            self._loop.remove_reader(self._socket.fileno())
            self._broken(error)


class WorkerPipes:
    """A worker's ends of its pipes: a Connection with the one engine that it is leased to."""

    units = control = None
    strangers = 0

    def __init__(self, ends: PipeEnds) -> None:
        self._of_units = WorkerEnd(ends.units)
        self._of_control = WorkerEnd(ends.control)

    def take(self, lease: Lease) -> None:
        pass

    def receive(self) -> Sequence[Frame]:
        return self._of_units.receive()

    def report(self, frames: Sequence[Frame]) -> None:
        self._of_units.send(frames)

    def receive_control(self, timeout: float) -> Sequence[Frame] | None:
        return self._of_control.receive() if self._of_control.wait(timeout) else None

    def beat(self, lease: Lease | None, heartbeat: bytes) -> bool:
        if lease is not None:
            self._of_control.send([heartbeat])
        return lease is not None


class WorkerEnd:
    """The end that a worker inherited as `descriptor`; its calls wait."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        os.set_inheritable(descriptor, False)
        self._messages = Messages()
        self._received: deque[Sequence[Frame]] = deque()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout: float) -> bool:
        """Is there something to receive, after `timeout` seconds at most?"""
        return bool(self._received or self._poll.poll(1000 * timeout))

    def receive(self) -> Sequence[Frame]:
        """The next message. Raises EOFError if the engine has gone."""
        while not self._received:
            try:
                data = self._socket.recv(_AT_ONCE)
            except OSError:
                data = b""
            if not data:
                raise EOFError("the engine has gone")
            self._received += self._messages.of(data)
        return self._received.popleft()

    def send(self, frames: Sequence[Frame]) -> None:
        """Send a message, if the engine is still there."""
        parts = parts_of(frames)
        with suppress(OSError):
            sent = self._socket.sendmsg(parts)
            if sent < sum(map(len, parts)):
                self._socket.sendall(b"".join(parts)[sent:])


def parts_of(frames: Sequence[Frame]) -> list[Frame]:
    """What is sent for a message, in bytes."""
    parts: list[Frame] = [memoryview(frame).cast("B") for frame in frames[1:]]
    parts.append(frames[0])
    sizes = pack(f"<{len(parts) + 1}Q", len(parts), *map(len, parts))
    return [sizes, *parts] if len(parts) <= _PARTS else [sizes, b"".join(parts)]


class Messages:
    """Cuts messages out of what comes in pieces of any size."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._needed = 0

    def of(self, data: bytes) -> list[Sequence[Frame]]:
        """The messages that are whole with this piece. Raises MessageError."""
        messages: list[Sequence[Frame]] = []
        stream: bytes | bytearray = data
        if self._rest:
            self._rest += data
            stream = self._rest
        if len(stream) < self._needed:
            return messages
        view = memoryview(stream)
        self._rest, self._needed = bytearray(), 0
        while len(view) >= _NUMBER.size:
            frames, size = _cut(view)
            if size > len(view):
                self._needed = size
                break
            messages.append(frames)
            view = view[size:]
        self._rest += view
        return messages


def _cut(view: memoryview) -> tuple[Sequence[Frame], int]:
    """The frames of the message that begins here, and its size, as far as it is known; no frames
    if it is not whole."""
    (count,) = _NUMBER.unpack_from(view)
    start = _NUMBER.size * (count + 1)
    if not count:
        raise MessageError("a message without a header")
    if len(view) < start:
        return (), start
    sizes = unpack_from(f"<{count}Q", view, _NUMBER.size)
    size = start + sum(sizes)
    if len(view) < size:
        return (), size
    frames = []
    for each in sizes:
        frames.append(view[start : start + each])
        start += each
    return (frames[-1], *frames[:-1]), size
