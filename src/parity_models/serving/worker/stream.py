"""Streams of messages between an engine and a worker: socket pairs, or TCP between namespaces.

A message passes from process to process directly, without a thread in between. Either end notices
when the other is gone. On the stream, a message is the sizes of its frames, preceded by their
number (little-endian, 8 bytes each), the tensors, and the header, which comes last so that tensors
are aligned.
"""

import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from struct import Struct, pack, unpack_from
from typing import TYPE_CHECKING

from parity_models.serving.worker.wire import Frame, MessageError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop  # which workers do without

_NUMBER = Struct("<Q")
_CHUNK = 2**16
"""Bytes that are received at once."""
_PARTS = 512
"""Frames that are sent without being joined; the system takes 1,024."""


class EngineStream:
    """The engine's end, on its event `loop`.

    `on_message` is called with each message, `on_error` once if the stream is malformed, after
    which nothing more is read. The end of the stream is not reported: the process ends as well.
    """

    def __init__(
        self,
        loop: "AbstractEventLoop",
        end: socket.socket,
        on_message: Callable[[Sequence[Frame]], None],
        on_error: Callable[[MessageError], None],
    ) -> None:
        self._on_message = on_message
        self._on_error = on_error
        self._loop = loop
        self._socket = end
        self._socket.setblocking(False)
        self._messages = Messages()
        self._unsent = b""
        loop.add_reader(end.fileno(), self._receive)

    def send(self, frames: Sequence[Frame]) -> None:
        """Send a message without waiting; the rest is sent once the socket accepts it."""
        parts = parts_of(frames)
        size = sum(map(len, parts))
        sent = 0
        if not self._unsent:
            try:
                sent = self._socket.sendmsg(parts)
            except BlockingIOError:
                pass
            except OSError:  # the worker is gone, as its supervisor will notice
                return
        if sent < size:
            if not self._unsent:
                self._loop.add_writer(self._socket.fileno(), self._send_rest)
            self._unsent += b"".join(parts)[sent:]

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()

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
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._socket.fileno())
            return
        try:
            for frames in self._messages.of(data):
                self._on_message(frames)
        except MessageError as error:
            if self._socket.fileno() >= 0:
                self._loop.remove_reader(self._socket.fileno())
            self._on_error(error)


class WorkerStream:
    """The worker's end; its calls block."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        os.set_inheritable(end.fileno(), False)
        self._messages = Messages()
        self._received: deque[Sequence[Frame]] = deque()
        self._poll = select.poll()
        self._poll.register(end.fileno(), select.POLLIN)

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds. Return whether there is something to receive."""
        return bool(self._received or self._poll.poll(1000 * timeout))

    def receive(self) -> Sequence[Frame]:
        """Wait for the next message. Raises EOFError if the engine is gone."""
        while not self._received:
            try:
                data = self._socket.recv(_CHUNK)
            except OSError:
                data = b""
            if not data:
                raise EOFError("the engine is gone")
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
    """Return the bytes of a message, in pieces."""
    parts: list[Frame] = [memoryview(frame).cast("B") for frame in frames[1:]]
    parts.append(frames[0])
    sizes = pack(f"<{len(parts) + 1}Q", len(parts), *map(len, parts))
    return [sizes, *parts] if len(parts) <= _PARTS else [sizes, b"".join(parts)]


class Messages:
    """Cuts messages out of a stream that arrives in pieces of any size."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._needed = 0

    def of(self, data: bytes) -> list[Sequence[Frame]]:
        """Return the messages that are complete with this piece. Raises MessageError."""
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
    """Return the frames of the message that begins here and its size, as far as it is known; no
    frames if the message is incomplete."""
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
