"""Answers over HTTP/1.1: their bytes, and those that a client leaves unread."""

import asyncio
import time
from http import HTTPStatus
from math import inf

from parity_models.serving.errors import AbandonedError
from parity_models.serving.limits import ByteBudget
from parity_models.serving.rest.messages import Request, Response

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_PROGRESS = 16 * 2**10
"""Bytes of unread answers that a client has to take in each write timeout."""

_JOIN = 64 * 2**10
"""Bytes of content that are copied to be sent in one piece with their head."""

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}
_STATUS_LINES[AbandonedError.status] = b"HTTP/1.1 499 Client Closed Request\r\n"


def write_answer(
    transport: asyncio.Transport, request: Request, response: Response, date: bytes, last: bool
) -> int:
    """Write `response`, with the header `date`; `last`: the connection ends with it. Returns how
    many bytes that are."""
    content = response.content
    lines = [_STATUS_LINES[response.status], date]
    lines += [b"%b: %b\r\n" % header for header in response.headers]
    if request.log is not None:
        lines.append(b"x-request-id: %b\r\n" % request.log.id.encode())
    if response.pieces is None:
        lines.append(b"content-length: %d\r\n" % len(content))
    if last:
        lines.append(b"connection: close\r\n")
    elif "connection" in request.headers:
        lines.append(b"connection: keep-alive\r\n")  # HTTP/1.0 wants to be told
    lines.append(b"\r\n")
    if request.method == "HEAD":
        content = b""
    if len(content) <= _JOIN:
        lines.append(content)
        whole = b"".join(lines)
        transport.write(whole)
        return len(whole)
    head = b"".join(lines)
    transport.writelines((head, content))
    return len(head) + len(content)


class Unread:
    """The bytes of answers that a client has not read, counted against the server's `budget`.

    In each `timeout` (seconds), the client has to take some of them.
    """

    def __init__(self, budget: ByteBudget, timeout: float) -> None:
        self._budget = budget
        self._timeout = timeout
        self._size = 0
        self._due = inf

    def grew(self, size: int) -> None:
        """So many bytes cannot be sent for now."""
        self._count(size)
        self._due = time.monotonic() + self._timeout

    def gone(self) -> None:
        """They have been sent, or never will be."""
        self._count(0)
        self._due = inf

    def due(self, now: float) -> bool:
        """Is it time to look whether the client has taken some, at `now` (monotonic)?"""
        return now >= self._due

    def shrank(self, now: float, size: int) -> bool:
        """Has the client, which leaves `size` bytes unread, taken enough since the last look?"""
        if size > self._size - _PROGRESS:
            return False
        self._count(size)
        self._due = now + self._timeout
        return True

    def _count(self, size: int) -> None:
        self._budget.give_back(self._size)
        self._budget.hold(size)
        self._size = size
