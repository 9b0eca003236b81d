"""What the page says of latencies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.serving.page.latencies import MINUTES, NOW, WIDTH, Latencies
from parity_models.serving.page.tails import ONE_IN, Tails

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


def test_a_query_that_a_stand_in_answered_counts_alone_when_its_own_answer_comes() -> None:
    tails = Tails()
    tails.stood_in(10.02, query=1, arrived=10.0, runs=True)
    tails.ended(10.30, [1, 2], known=True)
    with_stand_ins, without = tails.with_stand_ins(12.0).now, tails.without(12.0).now
    assert with_stand_ins is not None
    assert without is not None
    assert with_stand_ins.p50 == pytest.approx(20, rel=WIDTH)
    assert without.p50 == pytest.approx(300, rel=WIDTH)
    assert tails.settled(12.0) == (1, 1)


def test_some_units_run_on_and_stand_for_those_that_are_cancelled() -> None:
    tails = Tails()
    for query in range(4 * ONE_IN):
        tails.stood_in(10.02, query, arrived=10.0, runs=True)
        spared = query % ONE_IN == 0
        if spared:
            tails.spared([query], ONE_IN)
        else:
            tails.cancelled([query])
        tails.ended(10.30 if spared else 10.02, [query], known=spared)
    without = tails.without(12.0).now
    assert without is not None
    assert without.count == 4 * ONE_IN
    assert without.p50 == pytest.approx(300, rel=WIDTH)
    assert tails.settled(12.0) == (4, 4)
    assert tails.owed == 0


def test_where_one_unit_of_a_query_is_spared_a_copy_that_is_cancelled_changes_nothing() -> None:
    tails = Tails()
    tails.stood_in(10.02, query=1, arrived=10.0, runs=True)
    tails.spared([1], ONE_IN)
    tails.cancelled([1, 2])
    tails.ended(10.30, [1], known=True)
    without = tails.without(12.0).now
    assert without is not None
    assert without.count == ONE_IN


def test_where_the_model_was_cut_short_the_time_until_then_is_a_bound_and_is_told() -> None:
    tails = Tails()
    tails.stood_in(10.02, query=1, arrived=10.0, runs=True)
    tails.ended(10.05, [1], known=False)
    tails.stood_in(10.02, query=2, arrived=10.0, runs=False)
    without = tails.without(12.0).now
    assert without is not None
    assert without.count == 2
    assert without.p999 == pytest.approx(50, rel=WIDTH)
    assert without.p50 == pytest.approx(20, rel=WIDTH)
    assert tails.settled(12.0) == (2, 0)


def test_what_the_model_answers_is_the_same_with_stand_ins_and_without() -> None:
    tails = Tails()
    tails.answered(3.5, arrived=3.0)
    tails.ended(3.5, [7], known=True)
    assert tails.with_stand_ins(5.0) == tails.without(5.0)
    assert tails.settled(5.0) == (0, 0)
