"""Run times are estimated from all units, those cut short included."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_world import run_times
from parity_models.scheduling.run_times import RunTimes


@given(st.lists(st.sampled_from([1.0, 1.5, 2.0, 4.0, 9.0]), min_size=1))
def test_of_units_that_finished_those_longer_than_an_age_are_counted(times: list[float]) -> None:
    known = run_times(*((time, True) for time in times))
    for age, share in known.ages():
        assert share == pytest.approx(sum(time > age for time in times) / len(times))


def test_units_cut_short_before_the_median_say_nothing() -> None:
    known = RunTimes(every=5)
    for seconds in (1, 2, 3, 4, 5):
        known.add(seconds, finished=True)
    assert not any(known.add(2.9, finished=False) for _ in range(5))
    assert known.median == 3
    for _ in range(5):
        known.add(3.0, finished=False)
    assert known.median == 5
    assert known.longest == 6, "past it, they run for twice as long"


def test_what_is_known_stays_known_while_all_units_are_cut_short() -> None:
    known = RunTimes(window=10, every=10)
    for _ in range(10):
        known.add(1.0, finished=True)
    before = known.left(0.5, 0.6)
    assert not any(known.add(0.001, finished=False) for _ in range(20)), "nothing is new"
    assert (known.median, known.longest) == (1.0, 1.0)
    assert known.left(0.5, 0.6) == before
    for _ in range(10):
        known.add(2.0, finished=True)
    assert known.median == 2.0


@given(st.lists(st.sampled_from([1.0, 1.5, 2.0, 4.0, 9.0]), min_size=1), st.floats(0, 8.9))
def test_what_is_left_of_units_is_their_mean_beyond_an_age(times: list[float], age: float) -> None:
    known = run_times(*((time, True) for time in [*times, 9.0]))
    since = age + 0.5
    running = [time for time in [*times, 9.0] if time > age]
    left, moment = known.left(age, since)
    beyond = [max(time, since) for time in running]
    assert left == pytest.approx(sum(time - since for time in beyond) / len(running))
    weighted = sum((time**2 - since**2) / 2 for time in beyond) / len(running)
    assert moment == pytest.approx(weighted)


def test_that_units_are_slow_is_not_forgotten_where_the_slow_ones_are_cut_short() -> None:
    known = RunTimes(window=100, every=10)
    for unit in range(300):
        slow, seen = unit % 10 == 9, unit < 100
        known.add((9.0 if seen else 1.3) if slow else 1.0, finished=seen or not slow)
    known.add(1.35, finished=True)  # the one that was late and not cut short
    for _ in range(9):
        known.add(1.0, finished=True)
    assert known.longest < 9, "those that ran to their end are forgotten"
    _, late = next(known.ages())
    assert late > 0.05
    assert known.left(1.0, 1.0)[0] > 1, "what is late runs as long again"
