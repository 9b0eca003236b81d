"""What a worker needs of the way between its engine and itself: a pair of pipes, or sockets."""

from collections.abc import Sequence
from typing import Protocol

from parity_models.serving.worker.wire import Frame, Lease


class Connection(Protocol):
    """A worker's end of what its engine's messages come through, and its own to the engine.

    `units` and `control` are the endpoints at which it listens; None without any. What stops the
    process raises EOFError.
    """

    @property
    def units(self) -> str | None: ...

    @property
    def control(self) -> str | None: ...

    @property
    def strangers(self) -> int:
        """How many without the key have been kept out since this was last asked."""

    # For the computing thread

    def take(self, lease: Lease) -> None:
        """Reports go to this engine from now on. Raises MessageError if there can be none."""

    def receive(self) -> Sequence[Frame]:
        """Wait for a message about units."""

    def report(self, frames: Sequence[Frame]) -> None:
        """Send the engine a message."""

    # For the other one

    def receive_control(self, timeout: float) -> Sequence[Frame] | None:
        """Wait for a message that cannot wait, for up to so many seconds."""

    def beat(self, lease: Lease | None, heartbeat: bytes) -> bool:
        """Send the heartbeat to who has the lease; was it sent?"""
