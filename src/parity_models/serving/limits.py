"""What a server holds at most, and for how long: of connections, calls, bytes and silence."""

from dataclasses import dataclass
from math import inf

from parity_models.errors import UserError
from parity_models.serving.errors import OverloadedError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of what clients can make a server hold. Times in seconds, sizes in bytes.

    `max_in_flight`: bytes of all requests that are read or under way. `max_body`: of one request.
    `max_rpcs`: gRPC calls at a time. `head_timeout`: from a connection's first byte of a request,
    or its opening, to the end of the headers. `body_timeout`: from there to the end of the body.
    `write_timeout`: for which a client may leave an answer unread. `idle_timeout`: between two
    requests of a connection. Raises UserError for values out of range.
    """

    max_connections: int = 1024
    max_rpcs: int = 1024
    max_body: int = 64 * 2**20
    max_in_flight: int = 2**30
    head_timeout: float = 10.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    idle_timeout: float = 75.0

    def __post_init__(self) -> None:
        for name in ("max_connections", "max_rpcs", "max_body", "max_in_flight"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("head_timeout", "body_timeout", "write_timeout", "idle_timeout"):
            if not 0 < getattr(self, name) < inf:
                raise UserError(f"{name} must be more than 0, got {getattr(self, name)}")
        if self.max_in_flight < self.max_body:
            raise UserError(
                f"max_in_flight ({self.max_in_flight}) must not be below max_body "
                f"({self.max_body}), else the largest request could never be taken"
            )


class ByteBudget:
    """The bytes of all requests in flight, over whatever protocol, up to `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    def take(self, size: int) -> None:
        """Raises OverloadedError where so many bytes more would be too many."""
        if self.held + size > self.most:
            raise OverloadedError(
                f"the requests in flight hold {self.held} bytes, and {size} more would exceed the "
                f"{self.most} this server holds at once; try again later",
                retry_after=1.0,
            )
        self.held += size

    def hold(self, size: int) -> None:
        """Count bytes that are there already, even where they are too many."""
        self.held += size

    def give_back(self, size: int) -> None:
        self.held -= size
