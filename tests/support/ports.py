"""Ports for servers that cannot be asked which one they took, or that come back to theirs."""

import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

FIRST = 20_000
"""Ray's workers have those below."""


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on, and that the system gives to nobody who asks for any, if it
    leaves some."""
    system = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    least, most = map(int, system.split())
    others = [*range(FIRST, least), *range(most + 1, 2**16)] or list(range(FIRST, 2**16))
    random.SystemRandom().shuffle(others)
    found: list[int] = []
    with ExitStack() as taken:
        while len(found) < number:
            port = others.pop()
            with suppress(OSError):  # somebody listens there
                taken.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    return found
