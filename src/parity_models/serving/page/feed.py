"""Sends frames to browsers as server-sent events, each made once for all of them.

While nobody watches, the server is sampled once a second, so that the charts have a past. A watcher
that does not keep up misses frames, and then gets a whole one.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Protocol

import msgspec

WATCHED = 0.25
"""Seconds between two frames."""

UNWATCHED = 1.0
"""Seconds between two samples while nobody watches."""

MAX_WATCHERS = 32
"""Watchers at a time; more are refused."""

_BEHIND = 4
"""Frames that may wait for a watcher."""

_log = logging.getLogger(__name__)


class Sampled(Protocol):
    """The source of frames."""

    def tick(self) -> None:
        """Sample what is sampled even if nobody watches."""

    def frame(self, *, whole: bool) -> msgspec.Struct:
        """Return the present state with what is new, or, if `whole`, with all that is kept."""


class Feed:
    """The frames of one server, from `start` to `close`."""

    def __init__(self, sampled: Sampled) -> None:
        self._sampled = sampled
        self._watchers: set[asyncio.Queue[bytes | None]] = set()
        self._sampling: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether there are as many watchers as there may be."""
        return len(self._watchers) >= MAX_WATCHERS

    def start(self) -> None:
        """Sample the server from now on."""
        self._sampling = asyncio.get_running_loop().create_task(self._sample_forever())

    def close(self) -> None:
        """End the streams of all watchers."""
        self._closed = True
        if self._sampling is not None:
            self._sampling.cancel()
        for watcher in self._watchers:
            if watcher.full():
                watcher.get_nowait()
            watcher.put_nowait(None)

    async def follow(self) -> AsyncGenerator[bytes, None]:
        """Yield frames as server-sent events, the first one whole, until the feed is closed."""
        watcher: asyncio.Queue[bytes | None] = asyncio.Queue(_BEHIND)
        self._watchers.add(watcher)
        try:
            yield _event(self._sampled.frame(whole=True))
            while not self._closed:
                behind = watcher.full()
                event = await watcher.get()
                if event is None:
                    return
                if behind:
                    while not watcher.empty():
                        watcher.get_nowait()
                    event = _event(self._sampled.frame(whole=True))
                yield event
        finally:
            self._watchers.discard(watcher)

    def sample(self) -> None:
        """Sample the server once, and send a frame to the watchers."""
        if not self._watchers:
            self._sampled.tick()
            return
        event = _event(self._sampled.frame(whole=False))
        for watcher in self._watchers:
            with suppress(asyncio.QueueFull):
                watcher.put_nowait(event)

    async def _sample_forever(self) -> None:
        while True:
            await asyncio.sleep(WATCHED if self._watchers else UNWATCHED)
            try:
                self.sample()
            except Exception:  # serving goes on without the page
                _log.exception("the live page could not be kept up to date")


def _event(frame: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(frame) + b"\n\n"
