"""Watchers get frames, at a bounded cost."""

import json
from collections.abc import AsyncGenerator
from typing import Any, cast

from msgspec import Struct

from parity_models.serving.page.feed import Feed


class Frame(Struct):
    """A frame, by its number."""

    at: float


class Sampled:
    """Numbers its frames. One that is `broken` cannot be made."""

    def __init__(self, broken: int = 0) -> None:
        self.frames = self.ticks = 0
        self.broken = broken

    def tick(self) -> None:
        self.ticks += 1

    def frame(self) -> Frame:
        self.frames += 1
        if self.frames == self.broken:
            raise ValueError("cannot be read")
        return Frame(float(self.frames))


def feed_of(sampled: Any = None) -> Feed:
    return Feed(sampled or cast(Any, Sampled()))


async def read(events: AsyncGenerator[bytes, None]) -> float:
    event = await anext(events)
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    at: float = json.loads(event[6:])["at"]
    return at


async def test_a_frame_is_made_once_for_all_and_who_does_not_keep_up_gets_the_latest() -> None:
    feed = feed_of()
    one, slow = feed.follow(), feed.follow()
    assert [await read(one), await read(slow)] == [1, 2]
    feed.sample()
    assert await read(one) == 3
    feed.sample()
    assert [await read(one), await read(slow)] == [4, 4]
    feed.sample()
    feed.close()
    assert [event async for event in slow] == []


async def test_without_watchers_no_frames_are_made() -> None:
    sampled = Sampled()
    feed = feed_of(sampled)
    watcher = feed.follow()
    await read(watcher)
    feed.sample()
    await watcher.aclose()
    made, ticks = sampled.frames, sampled.ticks
    feed.sample()
    assert (sampled.frames, sampled.ticks) == (made, ticks + 1)
