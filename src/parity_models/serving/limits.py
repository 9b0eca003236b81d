"""Limits of a server: connections, calls, bytes, times, and the files it may open."""

import asyncio
import logging
import resource
from dataclasses import dataclass

from parity_models.errors import UserError, spell
from parity_models.options import Options, option
from parity_models.serving.errors import (
    OverloadedError,
    Refused,
    RefusedError,
    RequestError,
    TooLargeError,
)

OTHER_FILES = 64
"""Descriptors besides those of connections and workers: models, logs, the event loop."""

FILES_OF_A_WORKER = 8
"""Descriptors for each worker: sockets to it and from it, its standard error, its process."""

LARGE = 64
"""Rows beyond which a request is large: it is admitted before its data are read, and arrives at the
scheduler in slices."""

LEAST_CONNECTIONS = 16
"""Connections that a server must have room for."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits(Options):
    """Bounds of what clients can make a server hold. Times in seconds, sizes in bytes.

    Those without a flag are for programs. `max_rpcs` bounds the gRPC calls for predictions at a
    time; `max_json`, a JSON body or gRPC's typed contents; `max_in_flight`, all requests and their
    answers together. The timeouts are for receiving a request's headers, for receiving its body,
    for a client to read an answer, and for a connection without a request. Clients of gRPC are
    asked to reconnect after `max_age`.
    Raises UserError for values out of range.
    """

    max_connections: int = option(
        1024, "Maximum number of connections, for HTTP and gRPC separately.", ge=1
    )
    max_body: int = option(
        64 * 2**20,
        "Maximum size of a request's body in MiB; over gRPC, half that.",
        unit="MiB",
        gt=0,
    )
    max_rpcs: int = 1024
    max_json: int = 8 * 2**20
    max_in_flight: int = 2**30
    head_timeout: float = 10.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    idle_timeout: float = 75.0
    max_age: float = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in vars(self).items():
            if value <= 0:
                raise UserError(f"{name} must be above 0, got {value:g}")
        if self.max_in_flight < self.max_body:
            held, body = (size / 2**20 for size in (self.max_in_flight, self.max_body))
            raise UserError(
                f"{spell('max_body')} ({body:g} MiB) must not be above what all requests may hold "
                f"together (max_in_flight, {held:g} MiB)"
            )

    def late(self, what: str, limit: Refused) -> RefusedError:
        """Return the error of a request, `what` of which did not arrive within this timeout."""
        text = f"{what} did not arrive within the {limit} of {getattr(self, limit):g} s"
        return RefusedError(text, 408, limit)


class ByteBudget:
    """The bytes of all requests in flight and of their answers, at most `most`. Holders add their
    bytes to `held`, and subtract them again."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._turn = asyncio.Lock()

    async def turn(self) -> None:
        """Wait for a turn of the event loop: only one large request works in each."""
        async with self._turn:
            await asyncio.sleep(0)

    def exceeded(self, size: int) -> RequestError:
        """Return the error of a request whose bytes, or those of its answer, exceed the budget."""
        if size > self.most:
            return TooLargeError(
                f"the request and its answer take {size} bytes, and all requests may hold "
                f"{self.most} (max_in_flight); send fewer rows at once",
                why=Refused.MAX_IN_FLIGHT,
            )
        return OverloadedError(
            f"the requests in flight hold {self.held} bytes, and {size} more would exceed the "
            f"{self.most} this server holds at once (max_in_flight); try again later",
            why=Refused.MAX_IN_FLIGHT,
        )


def allow_descriptors(connections: int, workers: int) -> None:
    """Raise this process's soft limit of open files to what this many connections and workers need.

    If the hard limit is lower, raise it to the hard limit, and log the shortage.

    Raises:
        UserError: Hardly any client could be served.

    """
    others = FILES_OF_A_WORKER * workers + OTHER_FILES
    needed, least = connections + others, min(connections, LEAST_CONNECTIONS) + others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    possible = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    text = (
        f"this process may open {possible} files (RLIMIT_NOFILE), and {connections} connections "
        f"and {workers} workers may need {needed}; raise the hard limit (ulimit -Hn {needed} as "
        "root, LimitNOFILE= of systemd, --ulimit nofile= of a container)"
    )
    if possible < least:
        raise UserError(f"{text}, or serve with fewer instances")
    if possible < needed:
        lower = spell("max_connections")
        _log.warning("%s, or lower %s: further ones will be refused", text, lower)
