"""The key that sockets share which strangers can reach, and the strangers that it keeps out.

CurveZMQ (https://rfc.zeromq.org/spec/26): who connects proves that it has the key before anything
that it sends is looked at; everything is encrypted, and what was recorded is of no use later. It
costs less than a keyed hash of each message, computed here, would (docs/explanation/engines.md).
"""

import hashlib
from dataclasses import dataclass, field
from typing import Self

import zmq
from zmq.utils.monitor import parse_monitor_message

from parity_models.errors import UserError

HANDSHAKE = 5000
"""Milliseconds that who connects has to prove that it has the key."""

_REFUSED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)

Socket = zmq.Socket[bytes]


@dataclass(frozen=True)
class SocketKey:
    """A key pair for all sockets of one deployment.

    Both halves are secret: a stranger would need the public one to begin a handshake.
    """

    public: bytes = field(repr=False)
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        """A key that nobody else has. Raises UserError where ZeroMQ was built without CURVE."""
        if not zmq.has("curve"):
            raise UserError(
                "this build of pyzmq has no CURVE, which sockets between machines are secured by; "
                "install pyzmq from its wheels"
            )
        return cls(*zmq.curve_keypair())

    @property
    def name(self) -> str:
        """What tells keys apart, and says nothing of them."""
        return hashlib.blake2b(self.public + self.secret, digest_size=4).hexdigest()

    def listen(self, socket: Socket) -> None:
        """Have a socket that is bound hereafter talk only with who has the key."""
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_SECRETKEY, self.secret)
        socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE)

    def reach(self, socket: Socket) -> None:
        """Have a socket that is connected hereafter talk only with who has the key."""
        socket.set(zmq.CURVE_SERVERKEY, self.public)
        socket.set(zmq.CURVE_PUBLICKEY, self.public)
        socket.set(zmq.CURVE_SECRETKEY, self.secret)


class Strangers:
    """Counts those who connect to a socket without its key. For one thread, as a socket is."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._events = socket.get_monitor_socket(_REFUSED)

    def count(self) -> int:
        """How many have been kept out since the last call; one that tries again counts again."""
        count = 0
        while self._events.poll(0):
            parse_monitor_message(self._events.recv_multipart())
            count += 1
        return count

    def close(self) -> None:
        self._socket.disable_monitor()
        self._events.close()
