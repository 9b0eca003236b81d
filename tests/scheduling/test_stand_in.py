"""What the adaptive policy learns of a stand-in: its run time and its coverage."""

import pytest

from parity_models.scheduling.policies.stand_in import FORGOTTEN, StandIn
from scheduling_world import run_times


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
        stand_in.answered(may_be_given=False)
    assert stand_in.coverage < 0.2
    assert stand_in.takes == 9.0
    stand_in.not_asked(FORGOTTEN)
    assert (stand_in.coverage, stand_in.takes) == (1.0, 0.5)


def test_the_coverage_is_the_share_of_answers_that_may_be_given() -> None:
    stand_in = StandIn(run_times((1.0, True)))
    for number in range(1000):
        stand_in.answered(may_be_given=number % 4 > 0)
    assert stand_in.coverage == pytest.approx(0.75, abs=0.05)
