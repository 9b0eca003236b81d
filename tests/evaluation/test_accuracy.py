"""Accuracy under unavailability is what its definition says, query by query."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linear_bundles import CLASSES, FEATURES, Array, linear_bundle
from parity_models.bundle.bundle import Accuracy, Bundle
from parity_models.codes import CodeSpec
from parity_models.errors import DataError
from parity_models.evaluation.judging import (
    FEWEST,
    FRACTIONS,
    MOST_SETS,
    measure_accuracy,
    share_interval,
    some_sets,
)
from parity_models.evaluation.outputs import Outputs
from present import some

SUM = CodeSpec("sum", "subtraction", 2)


def draw_data(rows: int) -> tuple[Array, Array, Array]:
    """Queries, labels that F gets right three times out of four, and F's weights."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(rows, FEATURES)).astype(np.float32)
    weights = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    labels = (inputs @ weights).argmax(axis=1)
    wrong = np.arange(rows) % 4 == 0
    labels[wrong] = (labels[wrong] + 1) % CLASSES
    return inputs, labels, weights


def measure(
    bundle: Bundle, inputs: Array, labels: Array, metric: str = "top-1", **options: Any
) -> Accuracy:
    return measure_accuracy(Outputs(bundle, inputs, **options), labels, metric=metric)


@pytest.mark.parametrize(("k", "r"), [(2, 1), (3, 1), (4, 2), (5, 3)])
def test_nothing_is_lost_where_reconstruction_is_exact(k: int, r: int, tmp_path: Path) -> None:
    inputs, labels, weights = draw_data(101)
    code = CodeSpec("sum", "subtraction", k, r)
    accuracy = measure(linear_bundle(tmp_path, weights, [weights] * r, code), inputs, labels)
    assert (accuracy.metric, accuracy.queries, accuracy.agreement) == ("top-1", 101, 1)
    assert accuracy.available_accuracy == pytest.approx(75 / 101)
    assert accuracy.degraded_accuracy == pytest.approx(75 / 101)
    assert accuracy.degraded_by_unavailable == pytest.approx([75 / 101] * r, abs=1e-3)
    assert accuracy.overall == pytest.approx(dict.fromkeys(map(str, FRACTIONS), 75 / 101))


@pytest.mark.parametrize("rows", [6, 7, 8, 100])
def test_each_query_counts_once_with_the_rest_of_its_group_there(rows: int, tmp_path: Path) -> None:
    """Against the definition, followed one query at a time."""
    k = 3
    inputs, labels, weights = draw_data(rows)
    poor = weights + np.random.default_rng(2).normal(size=weights.shape).astype(np.float32)
    bundle = linear_bundle(tmp_path, weights, [poor], CodeSpec("sum", "subtraction", k))
    accuracy = measure(bundle, inputs, labels, seed=5)

    order = list(np.random.default_rng(5).permutation(rows))
    right, same = [], []
    for start in range(0, rows, k):
        group = (order + order)[start : start + k]
        parity_output = inputs[group].sum(axis=0) @ poor
        for slot, row in enumerate(group[: rows - start]):
            others = [inputs[other] @ weights for i, other in enumerate(group) if i != slot]
            answer = (parity_output - np.sum(others, axis=0)).argmax()
            right.append(answer == labels[row])
            same.append(answer == (inputs[row] @ weights).argmax())
    assert len(same) == rows
    assert accuracy.degraded_accuracy == pytest.approx(np.mean(right))
    assert accuracy.agreement == pytest.approx(np.mean(same))
    a, d = accuracy.available_accuracy, some(accuracy.degraded_accuracy)
    shares = {str(f): (1 - f) * a + f * d for f in FRACTIONS}
    assert accuracy.overall == pytest.approx(shares)


@pytest.mark.parametrize("coded", [True, False])
def test_a_backup_is_judged_on_every_query(coded: bool, tmp_path: Path) -> None:
    inputs, labels, weights = draw_data(100)
    parity, code = ([weights], SUM) if coded else ([], None)
    bundle = linear_bundle(tmp_path, -weights, parity, code, backup=weights)
    accuracy = measure(bundle, inputs, labels)
    assert accuracy.backup_accuracy == 0.75
    assert accuracy.available_accuracy < 0.5
    assert (accuracy.degraded_accuracy is None) == (not coded)


def test_arrays_that_do_not_fit_the_bundle_are_refused_with_the_reason(tmp_path: Path) -> None:
    inputs, labels, weights = draw_data(10)
    bundle = linear_bundle(tmp_path, weights, [weights], SUM)
    for wrong_inputs, wrong_labels, reason in [
        (inputs[:, 1:], labels, r"rows of shape \[5\]; the model takes .*\[6\]"),
        (inputs, labels[1:], "10 inputs but 9 labels"),
        (inputs[:1], labels[:1], "1 inputs; this needs at least 2"),
        (inputs[:0], labels[:0], "there are 0 inputs, too few"),
    ]:
        with pytest.raises(DataError, match=reason):
            measure(bundle, wrong_inputs, wrong_labels)


# Intervals


@given(st.integers(FEWEST, 10_000), st.floats(0, 1))
def test_an_interval_holds_the_share_and_shrinks_with_more_queries(rows: int, share: float) -> None:
    found, wider = some(share_interval(share, 4 * rows)), some(share_interval(share, rows))
    assert 0 <= found[0] <= share + 1e-12
    assert share - 1e-12 <= found[1] <= 1
    assert found[1] - found[0] < wider[1] - wider[0]
    assert share_interval(1.0, FEWEST - 1) is None


def test_some_of_very_many_sets_are_tried() -> None:
    assert some_sets(4, 2, seed=0) == list(combinations(range(4), 2))
    some = some_sets(64, 3, seed=0)
    assert len(set(some)) == len(some) == MOST_SETS
    assert some == some_sets(64, 3, seed=0)
