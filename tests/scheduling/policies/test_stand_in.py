"""What the adaptive policy learns of a stand-in: its run time and the share accepted."""

import pytest

from estimates import run_times
from parity_models.scheduling.policies.risk import FORGOTTEN, StandIn


def test_a_stand_in_is_presumed_fast_until_it_is_measured() -> None:
    stand_in = StandIn(run_times((1.0, True)))
    assert stand_in.takes == 0.5
    for _ in range(20):
        stand_in.ran(0.2, finished=True)
    assert stand_in.takes == 0.2


def test_one_that_did_badly_is_asked_again_after_a_while() -> None:
    stand_in = StandIn(run_times((1.0, True)))
    for _ in range(100):
        stand_in.ran(9.0, finished=True)
        stand_in.answered(usable=False)
    assert stand_in.accepted[False] < 0.2
    assert stand_in.takes == 9.0
    stand_in.not_asked(FORGOTTEN)
    assert (stand_in.accepted[False], stand_in.takes) == (1.0, 0.5)


def test_it_counts_the_share_of_answers_that_usable() -> None:
    stand_in = StandIn(run_times((1.0, True)))
    for number in range(1000):
        stand_in.answered(usable=number % 4 > 0)
    assert stand_in.accepted[False] == pytest.approx(0.75, abs=0.05)


def test_answers_to_queries_that_another_one_was_refused_are_counted_apart() -> None:
    stand_in = StandIn(run_times((1.0, True)))
    for _ in range(200):
        stand_in.answered(usable=False, again=True)
    assert stand_in.accepted[True] < 0.1
    assert stand_in.accepted[False] == 1.0
