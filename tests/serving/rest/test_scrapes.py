"""Metrics are written for a share of the time only, and are never older than the question."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from parity_models.serving.rest.messages import Request, Response
from parity_models.serving.rest.service import SAVED, SHARE, Scrapes

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


class Written:
    """Metrics whose text says how often they were written, which takes `seconds` of computing and
    `waiting` each time."""

    def __init__(self, seconds: float, waiting: float = 0.0) -> None:
        self.now = 0.0
        self.times = 0
        self.seconds = seconds
        self.waiting = waiting
        self.scrapes = Scrapes(
            self.write, lambda: self.now, self.sleep, lambda: self.times * seconds
        )

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.now += seconds

    async def write(self, request: Request) -> Response:
        self.now += self.seconds + self.waiting
        self.times += 1
        return Response(200, b"%d" % self.times)

    async def ask(self, accept: str = "text/plain") -> int:
        request = Request("GET", "/metrics", [(b"accept", accept.encode())])
        return int((await self.scrapes(request)).content)


@given(st.lists(st.floats(0, 0.2), max_size=300), st.floats(0.001, 0.1))
async def test_metrics_take_a_share_of_the_time(waits: list[float], seconds: float) -> None:
    written = Written(seconds)
    for asked, wait in enumerate(waits, 1):
        written.now += wait
        assert await written.ask() == asked
    assert written.times * seconds <= SAVED + SHARE * written.now + seconds


async def test_all_who_wait_get_what_is_written_once() -> None:
    written = Written(1.0)
    assert await written.ask() == 1
    asked = [asyncio.create_task(written.ask()) for _ in range(100)]
    assert await asyncio.gather(*asked) == [2] * 100
    assert await written.ask() == 3


async def test_waiting_for_the_metrics_of_others_costs_nothing() -> None:
    written = Written(0.001, waiting=0.3)
    for asked in range(1, 1000):
        assert await written.ask() == asked
    assert written.now < 1000 * (0.001 + 0.3)


async def test_a_client_that_goes_keeps_no_other_waiting() -> None:
    written = Written(1.0)
    assert await written.ask() == 1
    gone, stays = (asyncio.create_task(written.ask()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == 2


async def test_each_format_has_an_answer_of_its_own() -> None:
    written = Written(1.0)
    answers = await asyncio.gather(written.ask(), written.ask(OPEN_METRICS), written.ask())
    assert answers[0] == answers[2] != answers[1]
