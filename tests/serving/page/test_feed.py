"""Who watches gets frames, at a bounded cost."""

import json
from collections.abc import AsyncGenerator

import pytest
from msgspec import Struct

from parity_models.serving.page.feed import MAX_WATCHERS, Feed


class Frame(Struct):
    """A frame, by its number."""

    at: float


class Sampled:
    """Numbers its frames: a whole one says at = -1."""

    def __init__(self) -> None:
        self.frames = 0
        self.ticks = 0

    def tick(self) -> None:
        self.ticks += 1

    def frame(self, *, whole: bool) -> Frame:
        self.frames += not whole
        at = -1.0 if whole else float(self.frames)
        return Frame(at)


async def read(events: AsyncGenerator[bytes, None]) -> float:
    event = await anext(events)
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    at: float = json.loads(event[6:])["at"]
    return at


async def test_the_first_frame_is_whole_and_the_others_say_what_is_new_to_all_alike() -> None:
    feed = Feed(Sampled())
    one, other = feed.follow(), feed.follow()
    assert [await read(one), await read(other)] == [-1, -1]
    feed.sample()
    feed.sample()
    assert [await read(one), await read(other), await read(one)] == [1, 1, 2]
    feed.close()
    assert [event async for event in one] == []


async def test_a_watcher_that_does_not_keep_up_gets_a_whole_frame_next() -> None:
    feed = Feed(Sampled())
    slow = feed.follow()
    assert await read(slow) == -1
    for _ in range(6):
        feed.sample()
    assert await read(slow) == -1
    feed.sample()
    assert await read(slow) == 7


async def test_without_watchers_no_frames_are_made() -> None:
    sampled = Sampled()
    feed = Feed(sampled)
    watcher = feed.follow()
    await read(watcher)
    feed.sample()
    await watcher.aclose()
    made, ticks = sampled.frames, sampled.ticks
    feed.sample()
    assert (sampled.frames, sampled.ticks) == (made, ticks + 1)


async def test_a_feed_has_room_for_so_many_watchers() -> None:
    feed = Feed(Sampled())
    watchers = [feed.follow() for _ in range(MAX_WATCHERS)]
    for watcher in watchers:
        assert not feed.full
        await read(watcher)
    assert feed.full
    await watchers[0].aclose()
    assert not feed.full


async def test_a_frame_that_cannot_be_made_is_logged_and_the_next_one_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Sampled):
        def frame(self, *, whole: bool) -> Frame:
            if not whole and self.frames == 0:
                self.frames = 1
                raise ValueError("cannot be read")
            return super().frame(whole=whole)

    feed = Feed(Broken())
    feed.start()
    watcher = feed.follow()
    assert await read(watcher) == -1
    assert await read(watcher) == 2
    assert "could not be kept up to date" in caplog.text
    feed.close()
