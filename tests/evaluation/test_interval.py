"""How sure an accuracy is, and that too few queries say nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parity_models.evaluation.interval import FEWEST, score_interval, share_interval


@given(st.integers(FEWEST, 10_000), st.floats(0, 1))
def test_an_interval_holds_the_share_and_shrinks_with_more_queries(rows: int, share: float) -> None:
    found, wider = share_interval(share, 4 * rows), share_interval(share, rows)
    assert found is not None
    assert wider is not None
    assert 0 <= found[0] <= share + 1e-12
    assert share - 1e-12 <= found[1] <= 1
    assert found[1] - found[0] < wider[1] - wider[0]


def test_the_true_share_is_within_it_in_nearly_all_cases() -> None:
    right = np.random.default_rng(0).random((2000, 200)) < 0.9
    spans = [share_interval(float(each.mean()), 200) for each in right]
    assert np.mean([span is not None and span[0] <= 0.9 <= span[1] for span in spans]) > 0.93


@pytest.mark.parametrize("metric", ["r2", "cosine"])
def test_scores_that_are_no_shares_have_one_too(metric: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(300, 4))
    found = score_interval(metric, labels + 0.3 * rng.normal(size=labels.shape), labels)
    assert found is not None
    assert 0.8 < found[0] < found[1] < 1


def test_of_too_few_queries_there_is_none() -> None:
    assert share_interval(1.0, FEWEST - 1) is None
    assert score_interval("r2", np.ones((5, 1)), np.ones((5, 1))) is None
