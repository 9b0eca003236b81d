"""Metrics are written for a share of the time only, and are never older than the question."""

import asyncio
import re
import time
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily

from parity_models.serving.rest import SHARE, Request, Scrapes

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


class Written:
    """Metrics that say how often they were written, which takes 20 ms of computing."""

    def __init__(self) -> None:
        self.times = 0
        self.spent = 0.0
        self.scrapes = Scrapes(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        began = time.thread_time()
        while time.thread_time() < began + 0.02:
            pass
        self.times += 1
        self.spent += 0.02
        yield GaugeMetricFamily("times", "Times.", value=self.times)

    async def ask(self, accept: str = "text/plain") -> int:
        request = Request("GET", "/metrics", [(b"accept", accept.encode())])
        found = re.search(rb"^times (\d+)", (await self.scrapes(request)).content, re.MULTILINE)
        assert found is not None
        return int(found[1])


async def test_metrics_take_a_share_of_the_time() -> None:
    written, began = Written(), time.monotonic()
    for asked in range(1, 4):
        assert await written.ask() == asked
    assert written.spent - 0.02 <= SHARE * (time.monotonic() - began)


async def test_all_who_wait_get_what_is_written_once() -> None:
    written = Written()
    assert await written.ask() == 1
    asked = [asyncio.create_task(written.ask()) for _ in range(100)]
    assert await asyncio.gather(*asked) == [2] * 100


async def test_a_client_that_goes_keeps_no_other_waiting() -> None:
    written = Written()
    assert await written.ask() == 1
    gone, stays = (asyncio.create_task(written.ask()) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == 2


async def test_each_format_has_an_answer_of_its_own() -> None:
    written = Written()
    answers = await asyncio.gather(written.ask(), written.ask(OPEN_METRICS), written.ask())
    assert answers[0] == answers[2] != answers[1]
