"""How a worker on another machine, or behind a link, talks with its engine: ZeroMQ over TCP."""

from collections.abc import Sequence

import zmq

from parity_models.serving.worker.socket_key import SocketKey, Strangers
from parity_models.serving.worker.wire import Frame, Lease, MessageError

LINGER = 1000
"""Milliseconds for which the last report to an engine is sent after its lease has ended."""


class WorkerSockets:
    """A worker's sockets: a Connection with one engine after another.

    They listen at the endpoints `units` and `control`. With a `key`, only who has it can talk to
    the worker. Frames of more than `max_frame` bytes are refused; -1: none are.
    """

    def __init__(
        self, units: str, control: str, *, key: SocketKey | None = None, max_frame: int = -1
    ) -> None:
        self._context = zmq.Context()
        self._key = key
        self._max_frame = max_frame
        self._strangers: list[Strangers] = []
        self._control, self.control = self._listen(control)
        self._units, self.units = self._listen(units)
        # A socket belongs to one thread: each has its own for what it reports.
        self._reports = self._to_engine()
        self._heartbeats = self._to_engine()
        self._beats_for: Lease | None = None

    @property
    def strangers(self) -> int:
        return sum(each.count() for each in self._strangers)

    # For the computing thread

    def take(self, lease: Lease) -> None:
        reports = self._to_engine()
        try:
            reports.connect(lease.reports or "")
        except zmq.ZMQError as error:
            reports.close(linger=0)
            raise MessageError(f"a lease of nobody at {lease.reports}: {error}") from error
        self._reports.close(linger=LINGER)
        self._reports = reports

    def receive(self) -> Sequence[Frame]:
        return [frame.buffer for frame in self._units.recv_multipart(copy=False)]

    def report(self, frames: Sequence[Frame]) -> None:
        self._reports.send_multipart(frames, copy=False)

    # For the other one

    def receive_control(self, timeout: float) -> Sequence[Frame] | None:
        if not self._control.poll(round(1000 * timeout)):
            return None
        return [frame.buffer for frame in self._control.recv_multipart(copy=False)]

    def beat(self, lease: Lease | None, heartbeat: bytes) -> bool:
        if lease is not self._beats_for:
            self._heartbeats.close(linger=0)
            self._heartbeats = self._to_engine()
            if lease is not None and lease.reports is not None:
                self._heartbeats.connect(lease.reports)
            self._beats_for = lease
        if lease is None:
            return False
        try:
            self._heartbeats.send(heartbeat, zmq.NOBLOCK)
        except zmq.Again:  # the engine has yet to take many earlier ones
            return False
        return True

    def _listen(self, endpoint: str) -> tuple[zmq.Socket[bytes], str]:
        """A socket that is bound, and where."""
        socket = self._context.socket(zmq.PULL)
        socket.set(zmq.MAXMSGSIZE, self._max_frame)
        if self._key is not None:
            self._key.listen(socket)
            self._strangers.append(Strangers(socket))
        return socket, bind(socket, endpoint)

    def _to_engine(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.PUSH)
        if self._key is not None:
            self._key.reach(socket)
        return socket


def bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind it; returns the endpoint with the port that it got, where that was open."""
    socket.bind(endpoint)
    bound = socket.get(zmq.LAST_ENDPOINT)
    assert isinstance(bound, bytes)
    return bound.rstrip(b"\0").decode()
