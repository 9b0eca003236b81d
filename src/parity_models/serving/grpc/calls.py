"""What calls may make the server hold: how many at a time, and the bytes of their messages.

gRPC bounds a message's size, but not what many of them hold together, and not how long a client
takes to send one. So a call is taken before its message is read (as gRPC
allows where the message comes as a stream of one), and its message's bytes are taken from the
budget of all requests.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from parity_models.serving.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
)
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.refusals import Refused

_Message = TypeVar("_Message")

RESERVE = 100
"""Calls, and connections, beyond their limits that are let in far enough to be told of them, and
calls that ask for the server's health, which a busy server answers too."""

_PROMPT = 0.2
"""Seconds within which a message mostly arrives whole. gRPC does not say how long it will be: one
that takes longer is counted as if it were the longest."""

_ENDING = 0.05
"""Seconds within which gRPC cancels a call that is over, having said that no message comes: its
client has given it up, or the message is larger than gRPC takes, of which gRPC has told it."""


class Calls:
    """Bounds the calls of one server, by its `limits`; `budget` is shared with other protocols.

    `unsent` is told of each call that is over before its message is there.
    """

    def __init__(self, limits: Limits, budget: ByteBudget, unsent: Callable[[], None]) -> None:
        self._limits = limits
        self._budget = budget
        self._unsent = unsent
        self._running = 0
        self._lasting = 0
        self._slow = 0
        # Clients that send slowly leave half of the budget to the others.
        self._most_slow = max(1, budget.most // limits.max_body // 2)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a call while it is under way. Raises OverloadedError for one too many."""
        if self._running >= self._limits.max_rpcs:
            raise OverloadedError(
                f"the server takes at most {self._limits.max_rpcs:,} gRPC calls at a time "
                "(max_rpcs); try again later",
                why=Refused.MAX_RPCS,
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Count a stream of health or reflection while it lasts. Raises OverloadedError for one too
        many."""
        if self._lasting >= self._limits.max_connections:
            raise OverloadedError(
                f"the server takes at most {self._limits.max_connections:,} streams of health and "
                "reflection at a time (max_connections); try again later",
                why=Refused.STREAMS,
            )
        self._lasting += 1
        try:
            yield
        finally:
            self._lasting -= 1

    async def read(self, messages: AsyncIterator[_Message]) -> _Message:
        """The call's message. Raises DeadlineError if it does not arrive in time, OverloadedError
        if too many arrive slowly, InvalidRequestError if there is none."""
        try:
            try:
                return await self.next(messages)
            except StopAsyncIteration:
                await asyncio.sleep(_ENDING)
        except asyncio.CancelledError:
            self._unsent()
            raise
        raise InvalidRequestError("the call has no message")

    async def next(self, messages: AsyncIterator[_Message]) -> _Message:
        """A message of the call, likewise. Raises StopAsyncIteration after the last one."""
        loop = asyncio.get_running_loop()
        slow = _Slow(self)
        try:
            async with asyncio.timeout(self._limits.body_timeout) as timeout:
                prompt = loop.call_later(_PROMPT, slow.begin, timeout)
                try:
                    return await anext(messages)
                finally:
                    prompt.cancel()
        except TimeoutError:
            raise slow.refusal or DeadlineError(
                f"the message was not whole within {self._limits.body_timeout:g} s (body_timeout); "
                "send it faster or send fewer rows at once",
                why=Refused.BODY_TIMEOUT,
            ) from None
        finally:
            slow.end()

    def begin_slow(self) -> None:
        """Count a message that arrives slowly. Raises OverloadedError for one too many."""
        if self._slow >= self._most_slow:
            raise OverloadedError(
                f"the server takes at most {self._most_slow} gRPC messages that arrive slowly at a "
                f"time: each may have {self._limits.max_body} bytes (max_body), and together they "
                f"have half of {self._budget.most} (max_in_flight); try again later",
                why=Refused.SLOW_MESSAGES,
            )
        self._budget.take(self._limits.max_body)
        self._slow += 1

    def end_slow(self) -> None:
        self._budget.give_back(self._limits.max_body)
        self._slow -= 1

    @contextmanager
    def holding(self, size: int) -> Iterator["Held"]:
        """Take so many bytes from the budget. Raises OverloadedError if there are too few."""
        held = Held(self._budget, size)
        try:
            yield held
        finally:
            held.shrink_to(0)


class Held:
    """Bytes of a budget that a request holds: those of its message, later those of its rows."""

    def __init__(self, budget: ByteBudget, size: int) -> None:
        budget.take(size)
        self._budget = budget
        self._size = size

    def shrink_to(self, size: int) -> None:
        if size < self._size:
            self._budget.give_back(self._size - size)
            self._size = size


class _Slow:
    """A message that may turn out to arrive slowly."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._begun = False
        self.refusal: RequestError | None = None

    def begin(self, timeout: asyncio.Timeout) -> None:
        try:
            self._calls.begin_slow()
            self._begun = True
        except OverloadedError as error:
            self.refusal = error
            timeout.reschedule(asyncio.get_running_loop().time())

    def end(self) -> None:
        if self._begun:
            self._calls.end_slow()
