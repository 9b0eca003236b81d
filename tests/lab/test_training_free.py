"""Codes without parity models: exact where they promise it, refused where nothing is determined."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline, make_smoothing_spline

from parity_models.errors import CodeError, DataError, UndecodableError
from parity_models.evaluation.outputs import Array
from parity_models_lab.accuracy.approaches import (
    evaluate_default,
    evaluate_training_free,
    fit_nested_regression,
    plain_approach,
)
from parity_models_lab.accuracy.training_free import (
    BerrutCode,
    NestedRegressionCode,
    TrainingFreeCode,
    smoothing_spline,
)

pytestmark = pytest.mark.slow

seeds = st.integers(0, 2**32 - 1)


@st.composite
def codes(draw: st.DrawFn) -> TrainingFreeCode:
    k, r = draw(st.integers(2, 6)), draw(st.integers(0, 3))
    smooth = st.sampled_from([0.0, 1e-3, 1.0])
    return draw(
        st.one_of(
            st.just(BerrutCode(k, r)),
            st.builds(NestedRegressionCode, st.just(k), st.just(r), smooth, smooth),
        )
    )


def lose(
    code: TrainingFreeCode, outputs: Sequence[Array], rng: np.random.Generator
) -> list[Array | None]:
    lost = rng.choice(code.coded, code.r, replace=False)
    return [None if i in lost else output for i, output in enumerate(outputs)]


def test_fewer_than_k_outputs_cannot_be_decoded() -> None:
    code = BerrutCode(3, 1)
    with pytest.raises(UndecodableError, match="the berrut code cannot decode"):
        code.decode([np.ones(2), np.ones(2), None, None])


@given(codes(), seeds)
def test_equal_queries_come_back_whatever_the_model(code: TrainingFreeCode, seed: int) -> None:
    """Coded queries are weighted means, so where all queries are one, so are they."""
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(3, 4))
    coded = code.encode([query] * code.k)
    assert len(coded) == code.coded
    for one in coded:
        np.testing.assert_allclose(one, query, rtol=0, atol=1e-9)
    for answer in code.decode(lose(code, [np.tanh(one) for one in coded], rng)):
        np.testing.assert_allclose(answer, np.tanh(query), rtol=0, atol=1e-6)


@given(st.integers(5, 9), st.sampled_from([1e-3, 0.1, 1.0]), seeds)
def test_smoothing_splines_are_those_of_scipy(n: int, smoothness: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = rng.permutation(np.cumsum(rng.uniform(0.1, 1, n)))
    values = rng.normal(size=n)
    points = np.linspace(nodes.min(), nodes.max(), 11)
    order = np.argsort(nodes)
    theirs = make_smoothing_spline(nodes[order], values[order], lam=smoothness)(points)
    ours = smoothing_spline(nodes, points, smoothness) @ values
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    exact = CubicSpline(nodes[order], values[order], bc_type="natural")(points)
    np.testing.assert_allclose(smoothing_spline(nodes, points, 0) @ values, exact, atol=1e-9)


def test_splines_are_lines_through_two_points_and_beyond_the_outer_ones() -> None:
    line = smoothing_spline(np.array([1.0, -1.0]), np.array([-2.0, 0.0, 3.0]), 0.1)
    np.testing.assert_allclose(line @ [5.0, 3.0], [2, 4, 7])
    nodes, points = np.array([0.0, 1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])
    bent = smoothing_spline(nodes, points, 0) @ [0.0, 1.0, 0.0, 2.0]
    assert bent[2] - bent[1] == pytest.approx(bent[1] - bent[0])


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: BerrutCode(1, 1), "k of 2 or more"),
        (lambda: BerrutCode(2, -1), "r of 0 or more"),
        (lambda: NestedRegressionCode(2, 1, -1.0), "smoothing is 0 or more"),
        (lambda: BerrutCode(2, 1).encode([np.zeros(3)]), "takes k=2 queries, got 1"),
        (lambda: BerrutCode(2, 1).encode([np.zeros(3, np.int64)] * 2), "floating point"),
    ],
)
def test_senseless_codes_are_refused_with_the_reason(build: object, reason: str) -> None:
    assert callable(build)
    with pytest.raises(CodeError, match=reason):
        build()


def data(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(rows, 6)).astype(np.float32)
    weights = rng.normal(size=(6, 4)).astype(np.float32)
    labels = (inputs @ weights).argmax(axis=1)
    labels[::4] = (labels[::4] + 1) % 4
    return inputs, labels, weights


def test_answers_count_as_the_definition_says() -> None:
    """One group at a time: every set unavailable in turn."""
    code = BerrutCode(3, 2)
    inputs, labels, weights = data(31)

    def run(x: np.ndarray) -> np.ndarray:
        values: np.ndarray = np.tanh(x @ weights) ** 3
        return values

    measured = evaluate_training_free(run, code, inputs, labels, seed=3)
    groups = np.random.default_rng(3).permutation(31)[:30].reshape(10, 3)
    for number, found in enumerate([measured.available, *measured.degraded]):
        right = []
        for group in groups:
            outputs = [run(one) for one in code.encode(list(inputs[group]))]
            for lost in combinations(range(code.coded), number):
                here = [None if i in lost else output for i, output in enumerate(outputs)]
                for slot, answer in enumerate(code.decode(here)):
                    right.append(answer.argmax() == labels[group[slot]])
        assert found == pytest.approx(np.mean(right))
    suffer = 1 - 0.9**code.coded
    assert measured.overall["0.1"] == pytest.approx(
        (1 - suffer) * measured.available + suffer * measured.degraded[0]
    )


def test_fitted_smoothing_is_no_worse_than_none_on_what_it_was_fitted_to() -> None:
    inputs, labels, weights = data(200)

    def run(x: np.ndarray) -> np.ndarray:
        values: np.ndarray = np.tanh(x @ weights) ** 3
        return values

    fitted = fit_nested_regression(run, 4, 1, inputs, labels)
    of = [
        evaluate_training_free(run, code, inputs, labels).degraded[0]
        for code in (fitted, NestedRegressionCode(4, 1))
    ]
    assert of[0] >= of[1]


def test_the_default_prediction_is_one_answer_for_all() -> None:
    inputs, labels, weights = data(100)
    predictions = inputs @ weights
    measured = evaluate_default(predictions, labels, predictions)
    common = predictions.mean(axis=0).argmax()
    assert measured.degraded == (np.mean(labels == common),)
    assert measured.overhead == 0
    assert measured.overall["0.2"] == pytest.approx(0.8 * 0.75 + 0.2 * measured.degraded[0])


def test_replication_answers_as_the_model_does() -> None:
    assert plain_approach("replication", 1.0, 0.9, 0.9).overall["0.1"] == pytest.approx(0.9)


def test_inputs_that_do_not_do_are_refused() -> None:
    inputs, labels, weights = data(10)
    for wrong_inputs, wrong_labels, reason in [
        (inputs[:1], labels[:1], "1 inputs; this needs 2 at least"),
        (inputs, labels[1:], "10 inputs but 9 labels"),
    ]:
        with pytest.raises(DataError, match=reason):
            evaluate_training_free(
                lambda x: x @ weights, BerrutCode(2, 1), wrong_inputs, wrong_labels
            )
