"""Limits of calls beyond gRPC's own, and errors as gRPC says them.

gRPC bounds a message's size, but not the memory that many of them hold together, and not the time
that a client takes to send one. So each call is taken before its message is read (as gRPC allows
where the message comes as a stream of one), and the bytes of messages are taken from the budget of
all requests.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc.aio import ServicerContext

from parity_models.serving.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
)
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.refusals import Refused

Context = ServicerContext[Any, Any]

RESERVE = 100
"""Calls beyond their limit that are let in far enough to be refused, and calls that ask for the
server's health, which a busy server answers too."""

DETAILS = "grpc-status-details-bin"
"""The trailing metadata that has a google.rpc.Status."""

MAX_TEXT, MAX_WIRE = 1000, 3000
"""Characters of an error that surely go through, and their bytes on the wire: they travel in a
header, with a client's names in them."""

_PROMPT = 0.2
"""Seconds within which a message mostly arrives whole. gRPC does not say how long it will be: one
that takes longer is counted as if it were the longest."""

_ENDING = 0.05
"""Seconds within which gRPC cancels a call that is over, having said that no message comes: its
client has given it up, or the message is larger than gRPC takes, which gRPC itself answers."""

_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    404: StatusCode.NOT_FOUND,
    406: StatusCode.FAILED_PRECONDITION,
    413: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    500: StatusCode.INTERNAL,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}


class Slots:
    """Places for `most` at a time; entering one too many raises OverloadedError."""

    def __init__(self, most: int, what: str, why: Refused) -> None:
        self._most = most
        self._what = what
        self._why = why
        self._taken = 0

    def __enter__(self) -> None:
        if self._taken >= self._most:
            raise OverloadedError(
                f"the server takes at most {self._most:,} {self._what}; try again later",
                why=self._why,
            )
        self._taken += 1

    def __exit__(self, *error: object) -> None:
        self._taken -= 1


class Calls:
    """Bounds the calls of one server, by its `limits`; `budget` is shared with other protocols.

    `unsent` is called for each call that is over before its message is there.
    """

    def __init__(self, limits: Limits, budget: ByteBudget, unsent: Callable[[], None]) -> None:
        self._budget = budget
        self._body_timeout = limits.body_timeout
        self._max_body = limits.max_body
        self._unsent = unsent
        self.predictions = Slots(
            limits.max_rpcs, "gRPC calls at a time (max_rpcs)", Refused.MAX_RPCS
        )
        self.watches = Slots(
            limits.max_connections,
            "streams of health at a time (max_connections)",
            Refused.STREAMS,
        )
        # Clients that send slowly leave half of the budget to the others.
        slow = max(1, budget.most // limits.max_body // 2)
        self._slow = Slots(
            slow,
            f"gRPC messages that arrive slowly at a time: each may have {limits.max_body} bytes "
            f"(max_body), and together they have half of {budget.most} (max_in_flight)",
            Refused.SLOW_MESSAGES,
        )

    async def read(self, messages: AsyncIterator[bytes]) -> bytes:
        """Read the call's message. Raises DeadlineError if it does not arrive in time,
        OverloadedError if too many arrive slowly, InvalidRequestError if there is none."""
        reading = asyncio.ensure_future(anext(messages, None))
        try:
            await asyncio.wait((reading,), timeout=min(_PROMPT, self._body_timeout))
            if not reading.done():
                with self._slow, self.holding(self._max_body):
                    await asyncio.wait((reading,), timeout=self._body_timeout - _PROMPT)
            if not reading.done():
                raise DeadlineError(
                    f"the message was not whole within {self._body_timeout:g} s (body_timeout); "
                    "send it faster or send fewer rows at once",
                    why=Refused.BODY_TIMEOUT,
                )
            message = reading.result()
            if message is None:
                await asyncio.sleep(_ENDING)
                raise InvalidRequestError("the call has no message")
            return message
        except asyncio.CancelledError:
            self._unsent()
            raise
        finally:
            reading.cancel()

    @contextmanager
    def holding(self, size: int) -> Iterator["Held"]:
        """Take so many bytes from the budget. Raises OverloadedError if there are too few."""
        held = Held(self._budget, size)
        try:
            yield held
        finally:
            held.shrink_to(0)

    def hold_answer(self, context: Context, size: int) -> None:
        """Count an answer's bytes against the budget until its call is over."""

        def give_back(_: object) -> None:
            self._budget.held -= size

        self._budget.held += size
        # grpc's stubs name a class of callbacks, where it takes any function.
        context.add_done_callback(give_back)  # type: ignore[arg-type]


class Held:
    """Bytes of a budget that a request holds: those of its message, later those of its rows."""

    def __init__(self, budget: ByteBudget, size: int) -> None:
        if budget.held + size > budget.most:
            raise budget.exceeded(size)
        budget.held += size
        self._budget = budget
        self._size = size

    def shrink_to(self, size: int) -> None:
        if size < self._size:
            self._budget.held -= self._size - size
            self._size = size


def code_of(error: RequestError) -> StatusCode:
    """The error's status code in gRPC: RESOURCE_EXHAUSTED where there is too much to do, else what
    stands for its HTTP status."""
    if isinstance(error, OverloadedError):
        return StatusCode.RESOURCE_EXHAUSTED
    return _CODES.get(error.status, StatusCode.INTERNAL)


def text_of(error: RequestError) -> str:
    """The error's text for clients, cut to what a header holds."""
    text = str(error)[:MAX_TEXT]
    size = 0
    for at, character in enumerate(text):
        # gRPC writes what is no printable ASCII as %XX, byte by byte.
        is_plain = " " <= character <= "~" and character != "%"
        size += 1 if is_plain else 3 * len(character.encode(errors="replace"))
        if size > MAX_WIRE:
            return text[:at]
    return text


async def refuse(context: Context, error: RequestError, metrics: Metrics) -> NoReturn:
    """End a call with this error, and count it; a google.rpc.Status has RetryInfo where it is known
    when it is worth trying again (google/rpc/error_details.proto of googleapis)."""
    if error.why is not None:
        metrics.refusals.labels(error.why).inc()
    metadata: tuple[tuple[str, bytes], ...] = ()
    if error.retry_after is not None:
        status = Status(code=code_of(error).value[0], message=text_of(error))
        delay = Duration()
        delay.FromMilliseconds(ceil(error.retry_after * 1e3))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
        metadata = ((DETAILS, status.SerializeToString()),)
    await abort(context, code_of(error), text_of(error), metadata)


async def abort(
    context: Context, code: StatusCode, text: str, metadata: tuple[tuple[str, bytes], ...] = ()
) -> NoReturn:
    """End a call with this status; it is no error if its client has just gone."""
    try:
        await context.abort(code, text, metadata)
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # gRPC would log it
        raise asyncio.CancelledError from error
