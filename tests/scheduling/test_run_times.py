"""Run times are estimated from all units, those cut short included."""

from hypothesis import given
from hypothesis import strategies as st

from adaptive_world import run_times
from parity_models.scheduling.run_times import RunTimes


@given(
    st.lists(st.sampled_from([1.0, 1.5, 2.0, 4.0, 9.0]), min_size=1),
    st.sampled_from([0.0, 0.2, 0.5]),
)
def test_at_most_the_share_of_units_is_below_a_quantile(times: list[float], share: float) -> None:
    age = run_times(*((time, True) for time in times)).quantile(share)
    assert age is not None
    assert sum(time < age for time in times) <= share * len(times)
    assert sum(time <= age for time in times) > share * len(times)


def test_units_cut_short_before_the_median_say_nothing() -> None:
    known = RunTimes(every=5)
    for seconds in (1, 2, 3, 4, 5):
        known.add(seconds, finished=True)
    assert not any(known.add(2.9, finished=False) for _ in range(5))
    assert known.median == 3
    for _ in range(5):
        known.add(3.0, finished=False)
    assert known.median == 5
    assert known.quantile(0.9) == 6, "past it, they run for twice as long"


def test_slow_units_are_remembered_though_they_are_cut_short() -> None:
    known = RunTimes(window=100, every=10)
    for unit in range(300):
        slow, seen = unit % 10 == 9, unit < 100
        known.add((9.0 if seen else 1.3) if slow else 1.0, finished=seen or not slow)
    late, longest = known.quantile(0.94), known.quantile(0.99)
    assert late is not None
    assert longest is not None
    assert longest < 9, "those that ran to their end are forgotten"
    assert late > 2, "what is late runs as long again"
