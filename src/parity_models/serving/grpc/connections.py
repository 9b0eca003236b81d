"""The connections that calls come over: so many at a time, and closed where that is the only way.

gRPC bounds them too, but closes those beyond its bound without a word, and neither says which
there are nor lets a server end one. So it is told a bound that is a little higher; who calls over
one connection too many is told so; and what is open is looked up in the process's descriptors.
"""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address, ip_address
from time import monotonic
from urllib.parse import unquote

from parity_models.serving.errors import OverloadedError
from parity_models.serving.refusals import Refused

_DESCRIPTORS = "/dev/fd"

_SHARE = 0.05
"""Of the server's time that goes into looking for connections that have ended, at most."""

_End = tuple[object, int]
"""The address and the port at the client's end of a connection."""


class Connections:
    """Those of one server that have carried a call, `most` at a time.

    A `peer` is what gRPC calls the client's end of a connection, as `ipv4:127.0.0.1:50012`.
    """

    def __init__(self, most: int) -> None:
        self.port = 0
        """The port that the server listens on, once it does."""
        self._most = most
        self._known: dict[str, _End | None] = {}
        self._next_look = 0.0

    def admit(self, peer: str) -> None:
        """Let a call of this peer in. Raises OverloadedError for one connection too many."""
        if peer in self._known:
            return
        if len(self._known) >= self._most:
            self._forget_ended()
        if len(self._known) >= self._most:
            raise OverloadedError(
                f"the server takes at most {self._most:,} gRPC connections (max_connections); use "
                "one connection for many calls, or try again later",
                why=Refused.MAX_CONNECTIONS,
            )
        self._known[peer] = _end(peer)

    def close(self, peer: str) -> bool:
        """Close the connection from `peer`; is there one?

        Whatever library owns the socket then finds that it has ended.
        """
        end = _end(peer)
        for there, connection in self._open():
            if there == end:
                with suppress(OSError):  # it ends by itself
                    connection.shutdown(socket.SHUT_RDWR)
                    return True
        return False

    def _forget_ended(self) -> None:
        began = monotonic()
        if began < self._next_look:
            return
        there = {end for end, _ in self._open()}
        self._known = {peer: end for peer, end in self._known.items() if end in there}
        now = monotonic()
        self._next_look = now + (now - began) / _SHARE

    def _open(self) -> Iterator[tuple[_End, socket.socket]]:
        """The server's connections, with their sockets until the next one is asked for."""
        for descriptor in os.listdir(_DESCRIPTORS):
            with suppress(OSError, ValueError), _copy(int(descriptor)) as here:
                if here.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                host, port, *_ = here.getpeername()
                if here.getsockname()[1] == self.port:
                    yield (_address(host), port), here


@contextmanager
def _copy(descriptor: int) -> Iterator[socket.socket]:
    """A socket of the process, which stays what it is, even if the original is closed and its
    number taken. Raises OSError for what is no socket, or closed meanwhile."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise OSError(f"descriptor {descriptor} is no socket")
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        yield copy


def _end(peer: str) -> _End | None:
    """The client's end of a connection, as gRPC names it; None: it is no IP address."""
    host, _, port = unquote(peer.partition(":")[2]).rpartition(":")
    with suppress(ValueError):
        return _address(host), int(port)
    return None


def _address(host: str) -> object:
    """An IP address to compare, whichever way it is written. Raises ValueError for what is none."""
    address = ip_address(host.strip("[]").partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
