"""/metrics costs no more than a share of the server's time, however often it is asked for.

Writing what all metrics are takes milliseconds in which the event loop does nothing else, and
anybody may ask, again and again, without reading the answers.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from parity_models.serving.rest.messages import Handler, Request, Response, metrics_format

SHARE = 0.05
"""Of the time, what may be used for writing metrics."""

SAVED = 0.5
"""Seconds of writing that may be saved up for clients that ask a few times at once."""


class Scrapes:
    """A handler of requests for metrics: what `read` answers, later where the time for that is used
    up. All who wait meanwhile get the same answer, which is as of after they asked.

    `clock` gives seconds, `sleep` lets some pass, and `spent` are those that this thread has
    computed: where other processes are asked for their metrics, waiting for them costs nothing.
    """

    def __init__(
        self,
        read: Handler,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        self._read = read
        self._clock = clock
        self._sleep = sleep
        self._spent = spent
        self._next: dict[str, asyncio.Task[Response]] = {}  # by media type, of which there are few
        self._left, self._counted = SAVED, clock()

    async def __call__(self, request: Request) -> Response:
        _, media_type = metrics_format(request)
        answer = self._next.get(media_type)
        if answer is None:
            answer = asyncio.create_task(self._write(request, media_type))
            self._next[media_type] = answer
        return await asyncio.shield(answer)

    async def _write(self, request: Request, media_type: str) -> Response:
        if (left := self._earned()) < 0:
            await self._sleep(-left / SHARE)
        del self._next[media_type]  # who asks from now on gets what is written later
        before = self._spent()
        try:
            return await self._read(request)
        finally:
            self._left -= self._spent() - before

    def _earned(self) -> float:
        now = self._clock()
        self._left = min(SAVED, self._left + SHARE * (now - self._counted))
        self._counted = now
        return self._left
