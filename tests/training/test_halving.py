"""Which candidates of a search go on, and what they are worth."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.training.halving import MARGIN, keep
from parity_models.training.worth import coverage, worth

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class One:
    name: str
    share: float
    score: float
    worth: float
    coded: bool = False


ONES = st.lists(
    st.builds(
        One, st.just("it"), st.floats(0.01, 3), st.floats(0, 1), st.floats(0, 1), st.booleans()
    ),
    min_size=1,
    max_size=20,
)


@given(ONES, st.integers(2, 8))
def test_some_go_on_and_all_others_are_told_why(judged: list[One], most: int) -> None:
    kept = keep(judged, most)
    assert 1 <= len(kept.places) <= most
    assert sorted([*kept.places, *kept.dropped]) == list(range(len(judged)))
    best = max(range(len(judged)), key=lambda place: judged[place].score)
    assert any(
        judged[place].score >= judged[best].score - MARGIN or judged[place].share < 1.02
        for place in kept.places
    )


@given(ONES, st.integers(2, 8))
def test_nobody_goes_on_who_is_slower_and_clearly_worse_than_another(
    judged: list[One], most: int
) -> None:
    for place in keep(judged, most).places:
        one = judged[place]
        assert not any(
            other.share <= one.share and other.score > one.score + MARGIN for other in judged
        )


def test_the_best_that_is_not_slower_than_the_model_goes_on_whatever_it_is_worth() -> None:
    judged = [
        One("as slow", 1.0, 0.99, 0.0),
        One("half", 0.5, 0.95, 0.4),
        One("tenth", 0.1, 0.90, 0.6),
        One("slower", 2.0, 1.0, 0.0),
    ]
    kept = keep(judged, 2)
    assert kept.places == (0, 2)
    assert "2 others are worth more" in kept.dropped[1]


def test_the_best_that_is_surely_not_slower_goes_on_beside_one_that_may_be() -> None:
    judged = [
        One("as large as the model", 0.98, 0.99, 0.01),
        One("half", 0.6, 0.97, 0.1),
        One("tiny", 0.1, 0.8, 0.7),
        One("small", 0.2, 0.9, 0.6),
    ]
    assert keep(judged, 3).places == (0, 1, 2)
    assert keep(judged, 2).places == (0, 2)


def test_slow_learners_go_on_while_there_is_room() -> None:
    judged = [
        One("fast, and has learned all it can", 0.03, 0.88, 0.7),
        One("slow", 0.05, 0.82, 0.5),
        One("slower", 0.1, 0.66, 0.1),
        One("hardly begun", 0.25, 0.15, 0.0),
    ]
    kept = keep(judged, 4, least=3)
    assert kept.places == (0, 1, 2)
    assert "is no slower" in kept.dropped[3]
    assert keep(judged, 4).places == (0,)


@given(ONES, st.integers(2, 8), st.integers(1, 8))
def test_so_many_go_on_if_there_are_so_many(judged: list[One], most: int, least: int) -> None:
    kept = keep(judged, most, least=least)
    assert len(kept.places) >= min(most, least, len(judged))


def test_the_best_of_both_kinds_go_on() -> None:
    judged = [
        One("parity", 0.9, 0.978, 0.1, coded=True),
        One("other parity", 0.87, 0.96, 0.13, coded=True),
        One("backup", 0.97, 0.976, 0.03),
        One("fast backup", 0.45, 0.89, 0.5),
    ]
    kept = keep(judged, 3)
    assert kept.places == (0, 2, 3)
    assert "3 others are worth more" in kept.dropped[1]


def test_a_stand_in_is_worth_what_it_saves_of_the_queries_it_may_answer() -> None:
    assert worth(0.8, 0.25) == pytest.approx(0.6)
    assert worth(1.0, 1.5) == 0


def test_as_many_of_the_surest_answers_are_covered_as_agree_often_enough() -> None:
    predictions = np.eye(2, dtype=np.float32)[[0] * 10]
    answers = np.array([[10 - i, 0] for i in range(9)] + [[0, 0.5]], np.float32)
    assert coverage("top-1", answers, predictions, 0.95) == pytest.approx(0.9)
    assert coverage("top-1", answers, predictions, 0.9) == 1
    assert coverage("top-1", -answers, predictions, 0.99) == pytest.approx(0.1, abs=0.11)
    values = np.arange(10, dtype=np.float32)[:, None]
    assert coverage("r2", values + (values == 3) * 5, values, 0.9) == pytest.approx(0.9)
