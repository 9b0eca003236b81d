"""Metrics are written anew for a share of the time only, and are current where few ask."""

from hypothesis import given
from hypothesis import strategies as st

from parity_models.serving.rest.messages import Request, Response, request_of
from parity_models.serving.rest.scrapes import SAVED, SHARE, Scrapes

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


class Written:
    """Metrics whose text says how often they were written, which takes `seconds` of computing and
    `waiting` each time."""

    def __init__(self, seconds: float, waiting: float = 0.0) -> None:
        self.now = 0.0
        self.times = 0
        self.seconds = seconds
        self.waiting = waiting
        self.scrapes = Scrapes(self.write, lambda: self.now, lambda: self.times * seconds)

    async def write(self, request: Request) -> Response:
        self.now += self.seconds + self.waiting
        self.times += 1
        return Response(200, b"%d" % self.times)

    async def ask(self, accept: str = "text/plain") -> bytes:
        return (
            await self.scrapes(request_of("GET", "/metrics", [(b"accept", accept.encode())]))
        ).content


@given(st.lists(st.floats(0, 0.2), max_size=300), st.floats(0.001, 0.1))
async def test_however_often_they_are_asked_for_a_share_of_the_time_is_used(
    waits: list[float], seconds: float
) -> None:
    written = Written(seconds)
    for wait in waits:
        written.now += wait
        assert int(await written.ask()) >= 1
    assert written.times * seconds <= SAVED + SHARE * written.now + seconds


async def test_who_asks_a_few_times_always_gets_what_is() -> None:
    written = Written(0.008)
    assert [await written.ask() for _ in range(5)] == [b"1", b"2", b"3", b"4", b"5"]
    for asked in range(6, 100):
        written.now += 1.0
        assert int(await written.ask()) == asked


async def test_waiting_for_the_metrics_of_others_costs_nothing() -> None:
    written = Written(0.001, waiting=0.3)
    for asked in range(1, 1000):
        assert int(await written.ask()) == asked


async def test_each_format_has_an_answer_of_its_own() -> None:
    written = Written(1.0)
    assert await written.ask() == b"1"
    assert await written.ask(OPEN_METRICS) == b"2"
    assert await written.ask() == b"1"
    assert await written.ask(OPEN_METRICS) == b"2"


async def test_versions_that_nobody_has_heard_of_are_no_formats_of_their_own() -> None:
    written = Written(1.0)
    for number in range(100):
        for kind in ("text/plain", "application/openmetrics-text"):
            await written.ask(f"{kind}; version=1.0.0.{number}, {kind};version=9.{number}.0")
    assert written.times == 1
