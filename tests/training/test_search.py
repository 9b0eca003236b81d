"""A search proposes stand-ins, and drops those that others beat."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_models import linear_model
from parity_models.models.onnx_model import OnnxModel
from parity_models.training.candidates import Proposal, saving
from parity_models.training.proposals import SLACK, Costs, families, propose
from parity_models.training.search import MARGINS, keep

pytestmark = pytest.mark.slow

Shape = tuple[int, ...]
MARGIN = MARGINS[-1]


@dataclass(frozen=True)
class One:
    name: str
    share: float
    score: float
    saving: float
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
    kept, dropped = keep(judged, most)
    assert 1 <= len(kept) <= most
    assert sorted([*kept, *dropped]) == list(range(len(judged)))
    best = max(range(len(judged)), key=lambda place: judged[place].score)
    assert any(
        judged[place].score >= judged[best].score - MARGIN or judged[place].share < 1.02
        for place in kept
    )


@given(ONES, st.integers(2, 8))
def test_nobody_goes_on_who_is_slower_and_clearly_worse_than_another(
    judged: list[One], most: int
) -> None:
    for place in keep(judged, most)[0]:
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
    kept, dropped = keep(judged, 2)
    assert kept == [0, 2]
    assert "2 others are worth more" in dropped[1]


def test_the_best_that_is_surely_not_slower_goes_on_beside_one_that_may_be() -> None:
    judged = [
        One("as large as the model", 0.98, 0.99, 0.01),
        One("half", 0.6, 0.97, 0.1),
        One("tiny", 0.1, 0.8, 0.7),
        One("small", 0.2, 0.9, 0.6),
    ]
    assert keep(judged, 3)[0] == [0, 1, 2]
    assert keep(judged, 2)[0] == [0, 2]


def test_slow_learners_go_on_while_there_is_room() -> None:
    judged = [
        One("fast, and has learned all it can", 0.03, 0.88, 0.7),
        One("slow", 0.05, 0.82, 0.5),
        One("slower", 0.1, 0.66, 0.1),
        One("hardly begun", 0.25, 0.15, 0.0),
    ]
    kept, dropped = keep(judged, 4, least=3)
    assert kept == [0, 1, 2]
    assert "is no slower" in dropped[3]
    assert keep(judged, 4)[0] == [0]


@given(ONES, st.integers(2, 8), st.integers(1, 8))
def test_so_many_go_on_if_there_are_so_many(judged: list[One], most: int, least: int) -> None:
    kept, _ = keep(judged, most, least=least)
    assert len(kept) >= min(most, least, len(judged))


def test_the_best_of_both_kinds_go_on() -> None:
    judged = [
        One("parity", 0.9, 0.978, 0.1, coded=True),
        One("other parity", 0.87, 0.96, 0.13, coded=True),
        One("backup", 0.97, 0.976, 0.03),
        One("fast backup", 0.45, 0.89, 0.5),
    ]
    kept, dropped = keep(judged, 3)
    assert kept == [0, 2, 3]
    assert "3 others are worth more" in dropped[1]


def test_a_stand_in_saves_time_for_the_queries_it_may_answer() -> None:
    assert saving(0.8, 0.25) == pytest.approx(0.6)
    assert saving(1.0, 1.5) == 0


def said(deployed: float) -> Callable[[Sequence[OnnxModel]], list[float]]:
    """The deployed model takes so many ms; of families 1, 2, 3, ... ms, the cheapest first, each
    narrow before it is at its usual width."""
    return lambda models: [deployed, *(float(i) for i in range(1, len(models)))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Shape], OnnxModel]:
    folder = tmp_path_factory.mktemp("models")

    def make(shape: Shape) -> OnnxModel:
        path = Path(folder, f"{len(shape)}.onnx")
        linear_model(path, shape, (4,))
        return OnnxModel(path)

    return make


@pytest.fixture(scope="module")
def costs(model: Callable[[Shape], OnnxModel]) -> Callable[[Shape], Costs]:
    """Those of a model that takes 3 ms for queries of a shape: networks are exported for them."""
    return cache(lambda shape: Costs(model(shape), families(shape), said(3.0)))


@pytest.mark.parametrize("shape", [(6,), (3, 40), (1, 16, 16)])
def test_backups_are_proposed_at_parts_of_the_time_and_parity_models_at_the_time(
    shape: Shape, costs: Callable[[Shape], Costs]
) -> None:
    found = propose(costs(shape))
    assert len(found) == len({each.slug for each in found})
    assert all(each.share <= SLACK for each in found)
    backups = [each.share for each in found if each.code is None]
    assert max(backups) > 0.45
    assert min(backups) < 0.45
    codes = {(each.code.encoder, each.code.k) for each in found if each.code is not None}
    assert {("stack", 2)} <= codes


def test_a_model_that_nothing_is_faster_than_still_gets_a_proposal(
    model: Callable[[Shape], OnnxModel],
) -> None:
    costs = Costs(model((6,)), families((6,)), said(0.01))
    (only,) = propose(costs)
    assert only == Proposal("linear", None, 100.0)


def test_narrow_networks_take_as_long_as_they_are_measured_to(
    model: Callable[[Shape], OnnxModel],
) -> None:
    """Where running a session is most of the time, a narrow network takes hardly more than the
    fastest, however many layers it has."""
    costs = Costs(model((6,)), families((6,)), lambda models: [2.0, 0.9, 0.9, 2.0])
    assert costs.share("mlp@0.05", None) == pytest.approx(0.45)
    half = [each.network for each in propose(costs) if each.code is None]
    assert any(each.startswith("mlp@") for each in half)


def test_a_wider_network_costs_more_and_one_that_cannot_take_the_queries_nothing(
    model: Callable[[Shape], OnnxModel], costs: Callable[[Shape], Costs]
) -> None:
    known = costs((1, 16, 16))
    narrow, usual, wide = (known.share(f"resnet-small@{width}", None) for width in (0.5, 1.0, 2.0))
    assert usual == pytest.approx(5 / 3)
    assert narrow
    assert usual
    assert wide
    assert narrow < usual < wide
    assert known.share("resnet18", None) is None
    assert (
        Costs(model((6,)), ("linear", "resnet-small"), said(3.0)).share("resnet-small", None)
        is None
    )
