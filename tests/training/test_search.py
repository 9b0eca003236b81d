"""A search proposes stand-ins, trains them, and drops those that others beat."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnx_models import linear_model
from parity_models.progress import Callbacks
from parity_models.training import Queries, open_teacher, search
from parity_models.training.candidates import Candidate, TrainingContext
from parity_models.training.distillation import distill
from parity_models.training.fit import Budget
from parity_models.training.networks import Queried
from parity_models.training.search import MARGINS, SLACK, propose
from parity_models.trust.gate import AnsweredClass

Shape = tuple[int, ...]
INPUTS = np.random.default_rng(0).normal(size=(1400, 6)).astype(np.float32)


@dataclass(frozen=True)
class One:
    """As much of a candidate as decides whether it is dropped."""

    name: str
    share: float
    score: float
    saving: float


def drop(judged: Sequence[Any], most: int, **options: Any) -> tuple[list[int], dict[int, str]]:
    """The places of those kept, and why others are not."""
    dropped = search.drop(judged, most, **options)
    return [place for place in range(len(judged)) if place not in dropped], dropped


SHARES = st.floats(0, 1)
ONES = st.lists(
    st.builds(One, st.just("it"), st.floats(0.01, 3), SHARES, SHARES), min_size=1, max_size=20
)


@given(ONES, st.integers(2, 8))
def test_few_are_kept_and_none_that_another_beats(judged: list[One], most: int) -> None:
    kept, _ = drop(judged, most)
    assert 1 <= len(kept) <= most
    margin = MARGINS[-1]
    for one in (judged[place] for place in kept):
        assert not any(
            other.share <= one.share and other.score > one.score + margin for other in judged
        )
    best = max(one.score for one in judged)
    assert any(
        judged[place].score >= best - margin or judged[place].share < SLACK for place in kept
    )


@pytest.mark.parametrize(
    ("judged", "most", "least", "kept"),
    [
        # The best that is not slower than the model is kept, however little it saves.
        ([(1.0, 0.99, 0.0), (0.5, 0.95, 0.4), (0.1, 0.90, 0.6), (2.0, 1.0, 0.0)], 2, 1, [0, 2]),
        # Slow learners are kept while there is room.
        (
            [(0.03, 0.88, 0.7), (0.05, 0.82, 0.5), (0.1, 0.66, 0.1), (0.25, 0.15, 0)],
            4,
            3,
            [0, 1, 2],
        ),
        ([(0.03, 0.88, 0.7), (0.05, 0.82, 0.5), (0.1, 0.66, 0.1), (0.25, 0.15, 0)], 4, 1, [0]),
    ],
)
def test_the_most_useful_candidates_are_kept(
    judged: list[tuple[Any, ...]], most: int, least: int, kept: list[int]
) -> None:
    found, dropped = drop([One("it", *each) for each in judged], most, least=least)
    assert found == kept
    assert all("is no slower" in why or "are worth more" in why for why in dropped.values())


# Proposals


FASTER = {"mlp@0.5": 1.0, "linear": 1 / 3, "mlp@0.25": 2 / 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "ms", "expected"),
    [((6,), 3.0, FASTER), ((1, 16, 16), 3.0, FASTER), ((6,), 0.01, {"linear": 100.0})],
)
def test_networks_that_are_not_slower_are_proposed_the_most_capable_first_or_the_fastest(
    shape: Shape,
    ms: float,
    expected: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model takes so many ms, and networks take 1, 2, 3, ... ms."""

    def times(models: Sequence[object], sizes: Shape) -> list[float]:
        return [ms, *map(float, range(1, len(models)))]

    monkeypatch.setattr(search, "inference_times", times)
    linear_model(tmp_path / "model.onnx", shape, (4,))
    with open_teacher(tmp_path / "model.onnx") as teacher:
        found = propose(teacher, Queried.of(shape), ())
    assert list(found) == list(expected)
    assert found == pytest.approx(expected)


# Searches


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingContext]:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    weights = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    linear_model(path, (6,), (4,), 3 * weights)
    queries = Queries.of(INPUTS)
    with open_teacher(path, INPUTS) as teacher:
        model = teacher.network()
        data = distill(model, teacher, queries, torch.device("cpu"))
        queried = teacher.describe(queries.train)
        yield TrainingContext(teacher, model, queries, data, queried, level=0.9)


def searched(context: TrainingContext, seconds: float, *names: str) -> search.Search:
    """Search among these backups."""
    return search.Search(context, seconds, Callbacks()).run(dict.fromkeys(names, 0.9))


def interrupt(patch: pytest.MonkeyPatch, owner: object, name: str, at: int) -> None:
    """Have Ctrl-C come with the call `at`, counted from 1, of a function."""
    real, calls = getattr(owner, name), iter(range(1, 1000))

    def called(*arguments: Any, **options: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    patch.setattr(owner, name, called)


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "untried"), [(20.0, 0), (1.0, 2)])
def test_no_more_candidates_are_tried_than_there_is_time_for(
    context: TrainingContext, monkeypatch: pytest.MonkeyPatch, seconds: float, untried: int
) -> None:
    names = ["linear", "mlp@0.25", "mlp@0.5", "mlp"]
    interrupt(monkeypatch, Candidate, "fit", 2)  # cut off rather than waited for
    dropped = searched(context, seconds, *names).dropped
    found = [name for name, why in dropped.items() if why.startswith("not tried")]
    assert found == [f"backup {name}" for name in names[2 : 2 + untried]]


@pytest.mark.slow
def test_a_candidate_is_judged_by_the_classes_that_it_may_answer(context: TrainingContext) -> None:
    candidate, other = (
        Candidate("linear", each)
        for each in (context, replace(context, allowed=(AnsweredClass(0, "0"),)))
    )
    candidate.fit(Budget())
    other.fit(Budget())
    share = float((context.data.held_out_predictions.argmax(1) == 0).float().mean())
    candidate.judge()
    assert candidate.covered > 2 * share > 0
    other.judge()
    assert 0 < other.covered < 1.5 * share


@pytest.mark.slow
def test_when_the_time_is_over_each_was_trained_once(context: TrainingContext) -> None:
    found = searched(context, 0.01, "linear", "mlp@0.25")
    assert not found.interrupted
    assert len(found.finalists) + len(found.dropped) == 2
    assert all(each.trained for each in found.finalists)


@pytest.mark.slow
@pytest.mark.parametrize("trained", [1, 0])
def test_ctrl_c_between_two_trainings_leaves_what_was_trained(
    context: TrainingContext, monkeypatch: pytest.MonkeyPatch, trained: int
) -> None:
    interrupt(monkeypatch, Candidate, "fit", trained + 1)
    if not trained:
        with pytest.raises(KeyboardInterrupt):
            searched(context, 3.0, "linear", "mlp@0.25")
        return
    found = searched(context, 3.0, "linear", "mlp@0.25")
    assert found.interrupted
    assert len(found.finalists) + len(found.dropped) == trained
