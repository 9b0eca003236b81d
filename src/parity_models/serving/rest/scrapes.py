"""/metrics costs no more than a share of the server's time, however often it is asked for.

Writing what all metrics are takes milliseconds in which the event loop does nothing else, and
anybody may ask, again and again, without reading the answers.
"""

import time
from collections.abc import Callable

from parity_models.serving.rest.messages import Handler, Request, Response, metrics_format

SHARE = 0.05
"""Of the time, what may be used for writing metrics."""

SAVED = 0.5
"""Seconds of writing that may be saved up for clients that ask a few times at once."""


class Scrapes:
    """A handler of requests for metrics: what `read` answers or, when the time for that is used up,
    what it answered last in the same format.

    `clock` gives seconds, and `spent` those that this thread has computed: where other processes
    are asked for their metrics, waiting for them costs nothing.
    """

    def __init__(
        self,
        read: Handler,
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        self._read = read
        self._clock = clock
        self._spent = spent
        self._last: dict[str, Response] = {}  # by media type, of which there are few
        self._left, self._counted = SAVED, clock()

    async def __call__(self, request: Request) -> Response:
        now = self._clock()
        self._left = min(SAVED, self._left + SHARE * (now - self._counted))
        self._counted = now
        _, media_type = metrics_format(request)
        last = self._last.get(media_type)
        if last is not None and self._left <= 0:
            return last
        spent = self._spent()
        response = self._last[media_type] = await self._read(request)
        self._left -= self._spent() - spent
        return response
