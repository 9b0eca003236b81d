"""Which stand-ins are proposed, by what a deployed model takes and what a network would."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

from onnx_models import linear_model
from parity_models.models.onnx_model import OnnxModel
from parity_models.training.candidates import SLACK, Candidate, families, propose
from parity_models.training.costs import Costs

pytestmark = pytest.mark.slow

Shape = tuple[int, ...]


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
    assert only == Candidate("linear", None, 100.0)


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
    assert usual == pytest.approx(7 / 3)
    assert narrow
    assert usual
    assert wide
    assert narrow < usual < wide
    assert known.share("resnet18", None) is None
    assert Costs(model((6,)), ("linear", "lenet5"), said(3.0)).share("lenet5", None) is None
