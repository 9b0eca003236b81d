"""Hands frames to who watches: server-sent events, made once for all watchers.

While nobody watches, the server is looked at once a second, for the charts to have a past. A
watcher that does not keep up misses frames, and then gets a whole one.
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
"""Seconds between two looks while nobody watches."""

MAX_WATCHERS = 32
"""Further ones are turned away."""

_BEHIND = 4
"""Frames that may wait for a watcher."""

_log = logging.getLogger(__name__)


class Sampled(Protocol):
    """Where frames come from, as a Sampler: of one kind each."""

    def tick(self) -> None:
        """Look at what has to be looked at even if nobody watches."""

    def frame(self, *, whole: bool) -> msgspec.Struct:
        """How it is, and what is new, or all there is."""


class Feed:
    """Frames of one server, while it is started and not closed."""

    def __init__(self, sampled: Sampled) -> None:
        self._sampled = sampled
        self._watchers: set[asyncio.Queue[bytes | None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def full(self) -> bool:
        """Are there as many watchers as there may be?"""
        return len(self._watchers) >= MAX_WATCHERS

    def start(self) -> None:
        """Look at the server from now on."""
        self._looking = asyncio.get_running_loop().create_task(self._look())

    def close(self) -> None:
        """End, for all watchers."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        for watcher in self._watchers:
            _put(watcher, None)

    async def follow(self) -> AsyncGenerator[bytes, None]:
        """Frames as server-sent events, the first one whole, until the feed is closed."""
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

    def look(self) -> None:
        """Look at the server once, and tell who watches."""
        if not self._watchers:
            self._sampled.tick()
            return
        event = _event(self._sampled.frame(whole=False))
        for watcher in self._watchers:
            with suppress(asyncio.QueueFull):
                watcher.put_nowait(event)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(WATCHED if self._watchers else UNWATCHED)
            try:
                self.look()
            except Exception:  # a page that shows nothing is no reason to serve nothing
                _log.exception("the live page could not be kept up to date")


def _put(watcher: asyncio.Queue[bytes | None], event: bytes | None) -> None:
    """Put it even where the queue is full."""
    if watcher.full():
        watcher.get_nowait()
    watcher.put_nowait(event)


def _event(frame: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(frame) + b"\n\n"
