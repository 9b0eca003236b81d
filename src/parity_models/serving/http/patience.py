"""How long a connection waits for its client; only answers, which the server owes, have no limit
here."""

import time
from enum import Enum, auto
from math import inf

from parity_models.serving.errors import LateRequestError
from parity_models.serving.limits import Limits
from parity_models.serving.refusals import Refused

REFUSED_TIMEOUT = 0.5
"""Seconds that a connection which is one too many has for its headers, and for TLS's handshake
before them."""


class Waits(Enum):
    """What a connection waits for."""

    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    REQUEST = auto()
    CLOSE = auto()


class Patience:
    """What a connection waits for, and until when (monotonic).

    Connections that are `refused` get little time for their headers: there is room for few of them.
    """

    def __init__(self, limits: Limits, refused: bool) -> None:
        self._limits = limits
        head = min(limits.head_timeout, REFUSED_TIMEOUT) if refused else limits.head_timeout
        self._seconds = {
            Waits.HEAD: head,
            Waits.BODY: limits.body_timeout,
            Waits.REQUEST: limits.idle_timeout,
        }
        self.waits = Waits.ANSWER
        self.due = inf

    def wait(self, waits: Waits) -> None:
        """Wait for this, from now on, or for as long as it has been; not once the connection is to
        close."""
        if waits is not self.waits and self.waits is not Waits.CLOSE:
            self.waits = waits
            answering = waits is Waits.ANSWER
            self.due = inf if answering else time.monotonic() + self._seconds[waits]

    def close(self, seconds: float) -> None:
        """Wait for so long until the client has closed its side."""
        self.waits = Waits.CLOSE
        self.due = time.monotonic() + seconds

    def end(self) -> None:
        """Wait for nothing."""
        self.due = inf

    def late(self) -> LateRequestError:
        """What a request ends with whose head or body did not come in time."""
        what, limit = "headers", "head_timeout"
        if self.waits is Waits.BODY:
            what, limit = ("body", "body_timeout")
        return LateRequestError(
            f"the request's {what} did not come whole within the {limit} of "
            f"{getattr(self._limits, limit):g} s",
            why=Refused(limit),
        )
