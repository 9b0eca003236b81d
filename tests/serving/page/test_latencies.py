"""What the page says of latencies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.serving.page.latencies import MINUTES, NOW, WIDTH, Latencies

SECONDS = st.floats(1e-5, 100.0)


@given(st.lists(SECONDS, min_size=1, max_size=200))
def test_percentiles_are_those_of_what_was_added_within_a_bucket(seconds: list[float]) -> None:
    latencies = Latencies()
    for each in seconds:
        latencies.add(100.0, each)
    now = latencies.tail(101.0).now
    assert now is not None
    assert now.count == len(seconds)
    for share, value in ((50, now.p50), (99, now.p99), (99.9, now.p999)):
        exact = 1e3 * np.percentile(seconds, share, method="inverted_cdf")
        assert value == pytest.approx(exact, rel=WIDTH)


@given(st.lists(st.tuples(st.integers(0, 2 * MINUTES), SECONDS), max_size=100), st.integers(1, 900))
def test_a_window_holds_its_seconds_and_no_others(
    added: list[tuple[int, float]], later: int
) -> None:
    latencies = Latencies()
    for at, seconds in sorted(added):
        latencies.add(float(at), seconds)
    now = max([at for at, _ in added], default=0) + later
    tail = latencies.tail(float(now))
    for window, found in ((NOW, tail.now), (MINUTES, tail.minutes)):
        inside = sum(now - window <= at < now for at, _ in added)
        assert (0 if found is None else found.count) == inside


def test_the_second_that_is_not_over_does_not_count_yet() -> None:
    latencies = Latencies()
    latencies.add(5.2, 0.010)
    assert latencies.tail(5.9).now is None
    assert latencies.tail(6.0).now is not None
