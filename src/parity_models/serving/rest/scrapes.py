"""/metrics, in at most a share of the server's time, however often it is asked for.

Writing all metrics takes milliseconds in which the event loop does nothing else, and anybody may
ask, again and again, without reading the answers.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from parity_models.serving.rest.messages import Handler, Request, Response

SHARE = 0.05
"""The share of the time that may be used for writing metrics."""

SAVED = 0.5
"""Seconds of writing that may be saved up for clients that ask a few times at once."""

_VERSIONS = ("0.0.1", "0.0.4", "1.0.0", "2.0.0")
"""The versions of formats of metrics that Prometheus asks for."""


def metrics_format(request: Request) -> tuple[Callable[[Collector], bytes], str]:
    """How metrics are written for this request, and the media type: one of a few, whatever versions
    it accepts, as their names would become part of the media type."""
    accepted = request.headers.get("accept", "").split(",")
    return choose_encoder(",".join(each for each in accepted if _is_of_known_version(each)))


def _is_of_known_version(media_type: str) -> bool:
    parameters = (each.strip().partition("=") for each in media_type.split(";"))
    return all(key != "version" or value in _VERSIONS for key, _, value in parameters)


def metrics_response(request: Request, registry: Collector) -> Response:
    """The metrics of the registry, in the Prometheus format that the request accepts."""
    encode, media_type = metrics_format(request)
    return Response(HTTPStatus.OK, encode(registry), ((b"content-type", media_type.encode()),))


class Scrapes:
    """A handler of requests for metrics, which `read` answers, later where the time for that is
    used up. All who wait meanwhile get the same answer, as of after they asked.

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
        now = self._clock()
        self._left = min(SAVED, self._left + SHARE * (now - self._counted))
        self._counted = now
        if self._left < 0:
            await self._sleep(-self._left / SHARE)
        del self._next[media_type]  # who asks from now on gets what is written later
        before = self._spent()
        try:
            return await self._read(request)
        finally:
            self._left -= self._spent() - before
