"""Answers that are on their way to clients, which may not read them.

Such an answer counts against the budget of bytes. gRPC waits for its client for as long as the
connection lives, and offers a server no way to end the call. So the connection is closed under it,
and with it whatever else it carries.
"""

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import Any
from urllib.parse import unquote

from grpc.aio import ServicerContext

from parity_models.serving.limits import ByteBudget

LEAST_RATE = 64 * 2**10
"""Bytes of an answer, a second, for which a client gets time beyond the write timeout."""

_DESCRIPTORS = "/dev/fd"

_log = logging.getLogger(__name__)


class UnreadAnswers:
    """Bounds for how long answers stay unread. `write_timeout` in seconds; `ended` is told of each
    connection that is closed."""

    def __init__(self, budget: ByteBudget, write_timeout: float, ended: Callable[[], None]) -> None:
        self.port = 0
        """The port that the server listens on, once it does."""
        self._budget = budget
        self._write_timeout = write_timeout
        self._ended = ended

    def sent(self, context: ServicerContext[Any, Any], size: int) -> None:
        """The call is answered with so many bytes, from now on."""
        self._budget.hold(size)
        answer = _Answer(context, size)
        self._wait(answer)
        # grpc's stubs name a class of callbacks, where it takes any function.
        context.add_done_callback(lambda _: self._over(answer))  # type: ignore[arg-type]

    def _wait(self, answer: "_Answer") -> None:
        seconds = self._write_timeout + answer.size / LEAST_RATE
        answer.timer = asyncio.get_running_loop().call_later(seconds, self._late, answer)

    def _late(self, answer: "_Answer") -> None:
        self._wait(answer)  # where it cannot be closed now
        if close_connection(answer.context.peer(), self.port):
            self._ended()
        else:
            _log.warning("an answer is not read, and its connection is not found")

    def _over(self, answer: "_Answer") -> None:
        answer.timer.cancel()  # which lets go of the answer, so that it is gone at once
        self._budget.give_back(answer.size)


class _Answer:
    """An answer of so many bytes to a call."""

    timer: asyncio.TimerHandle

    def __init__(self, context: ServicerContext[Any, Any], size: int) -> None:
        self.context = context
        self.size = size


def close_connection(peer: str, port: int) -> bool:
    """Close the connection from `peer`, as gRPC names it, to this process's `port`; is there one?

    Whatever library owns the socket then finds that it has ended.
    """
    host, _, peer_port = unquote(peer.partition(":")[2]).rpartition(":")
    with suppress(ValueError, OSError):
        remote = (_address(host), int(peer_port))
        for descriptor in os.listdir(_DESCRIPTORS):
            with suppress(OSError):  # it is closed meanwhile, or connected to nobody
                if not stat.S_ISSOCK(os.fstat(int(descriptor)).st_mode):
                    continue
                # A copy stays what it is, even if the original is closed and its number taken.
                with socket.socket(fileno=os.dup(int(descriptor))) as here:
                    if here.family not in (socket.AF_INET, socket.AF_INET6):
                        continue
                    there = here.getpeername()
                    if (_address(there[0]), there[1]) == remote and here.getsockname()[1] == port:
                        here.shutdown(socket.SHUT_RDWR)
                        return True
    return False


def _address(host: str) -> object:
    """An IP address to compare, whichever way it is written. Raises ValueError for what is none."""
    address = ip_address(host.strip("[]").partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
