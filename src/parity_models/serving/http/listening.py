"""The socket that listens for connections: opened, named, and closed without a reset to anybody."""

import ctypes
import socket
import struct
import sys
from contextlib import suppress

from parity_models.errors import UserError

BACKLOG = 2048
"""Connections that may wait to be accepted."""

_SO_ATTACH_FILTER = 26
"""Linux's option that filters what a socket receives; Python's `socket` does not name it."""

_NO_SYN = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of flags, at offset 13 of the TCP header
        (0x45, 0, 1, 0x02),  # does it have SYN?
        (0x06, 0, 0, 0),  # then drop the packet
        (0x06, 0, 0, 0xFFFFFFFF),  # else take the whole of it
    )
)
"""A classic BPF program that drops what opens a connection (`struct sock_filter`, man 7 socket)."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free. Raises UserError if it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]  # what Python adds says it once more
        raise UserError(
            f"cannot listen on {host} port {port}: {why}; choose another host or port (port 0 "
            "takes any that is free)"
        ) from error


def url_of(listening: socket.socket, scheme: str = "http") -> str:
    """The base URL, as http://127.0.0.1:8000."""
    host, port = listening.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def turn_away(listening: socket.socket) -> None:
    """Let nobody else begin to connect; those who have begun can still be accepted.

    Closing a listening socket resets every connection that is made between the last `accept` and
    `close`. A client that is turned away before it sees nothing, asks again after a second, as TCP
    does, and is refused by then, which it can tell from a request that was lost. Only on Linux.
    """
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(_NO_SYN)
        pointer = struct.pack("@HP", len(_NO_SYN) // 8, ctypes.addressof(program))
        with suppress(OSError):  # closed already, or in a sandbox that refuses filters
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
