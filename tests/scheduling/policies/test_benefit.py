"""The rule by which the adaptive policy weighs what a stand-in saves against what it costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_world import SOME_SLOW, run_times
from parity_models.scheduling.policies.benefit import URGENCY, Benefit, Choice
from parity_models.scheduling.policies.risk import FORGOTTEN, StandIn


def asking(takes: float, answers: float = 1.0) -> Choice:
    """A stand-in that answers this share of queries, else a copy."""
    return Choice(takes + (1 - answers), ((answers, takes), (1 - answers, takes + 1.0)))


def benefit(load: float = 0.0) -> Benefit:
    rule = Benefit()
    rule.learn(1.0, load)
    return rule


def test_what_is_saved_is_lateness_weighted_with_lateness() -> None:
    known = run_times(*[(1.0, True)] * 90, *[(3.0, True)] * 10)
    # A tenth of units run from 1 to 3; one asked at 1 that takes 0.5 ends its query at 1.5.
    saved = benefit().saved(asking(0.5), known, age=1.0)
    assert saved == pytest.approx(URGENCY * (2.0**2 - 0.5**2) / 2)


def test_where_a_stand_in_may_be_refused_a_copy_follows() -> None:
    known = run_times(*[(1.0, True)] * 90, *[(3.0, True)] * 10)
    saved = benefit().saved(asking(0.5, 0.5), known, age=1.0)
    assert saved == pytest.approx(
        URGENCY * (0.5 * (2.0**2 - 0.5**2) / 2 + 0.5 * (2.0**2 - 1.5**2) / 2)
    )
    assert benefit().cost(asking(0.5, 0.5)) == benefit().cost(asking(1.0))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 5))
def test_instance_time_is_dearer_at_a_higher_load(
    load: float, other: float, waiting: float
) -> None:
    low, high = sorted((load, other))
    choice = asking(1.0)
    cheap = benefit(load=low).cost(choice)
    assert 1 <= cheap <= benefit(load=high).cost(choice)
    assert cheap <= benefit(load=low).cost(choice, waiting)


def test_a_unit_is_at_risk_once_most_have_ended_and_it_is_likely_to_take_long() -> None:
    worth, age = benefit().at_risk(asking(0.5), run_times(*SOME_SLOW))
    assert age == 1.0
    assert worth > 0


def test_what_is_nearly_done_is_not_at_risk() -> None:
    known = run_times(*[(1.0, True)] * 90, *[(1.4, True)] * 10)
    assert benefit().at_risk(asking(0.5), known) == (0.0, float("inf"))


def test_a_stand_in_that_did_badly_is_asked_again_after_a_while() -> None:
    stand_in = StandIn(run_times((1.0, True)))
    for _ in range(100):
        stand_in.ran(9.0, finished=True)
        stand_in.answered(usable=False)
    assert stand_in.accepted < 0.2
    assert stand_in.takes == 9.0
    stand_in.not_asked(FORGOTTEN)
    assert (stand_in.accepted, stand_in.takes) == (1.0, 0.5)
