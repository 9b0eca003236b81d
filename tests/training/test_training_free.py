"""Codes without parity models: exact where they promise it, refused where nothing is determined."""

from collections.abc import Sequence
from io import StringIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.interpolate import CubicSpline, make_smoothing_spline

from linear_bundles import linear_bundle
from parity_models.codes import (
    BerrutCode,
    CodeSpec,
    LagrangeCode,
    LinearCode,
    NestedRegressionCode,
    TrainingFreeCode,
)
from parity_models.codes.splines import smoothing_spline
from parity_models.errors import CodeError, DataError, UndecodableError
from parity_models.evaluation import (
    approaches_table,
    compare_approaches,
    evaluate_default,
    evaluate_training_free,
    fit_nested_regression,
    plain_approach,
)
from parity_models.evaluation.compare import group_of
from parity_models.evaluation.predictor import Array
from parity_models.models.networks import build_network
from parity_models.tasks import Split

pytestmark = pytest.mark.slow

seeds = st.integers(0, 2**32 - 1)


@st.composite
def codes(draw: st.DrawFn) -> TrainingFreeCode:
    k, r = draw(st.integers(2, 6)), draw(st.integers(0, 3))
    smooth = st.sampled_from([0.0, 1e-3, 1.0])
    return draw(
        st.one_of(
            st.just(LinearCode(k, min(k, r))),
            st.builds(LagrangeCode, st.just(k), st.just(r), st.integers(1, 3)),
            st.just(BerrutCode(k, r)),
            st.builds(NestedRegressionCode, st.just(k), st.just(r), smooth, smooth),
        )
    )


def lose(
    code: TrainingFreeCode, outputs: Sequence[Array], rng: np.random.Generator
) -> list[Array | None]:
    lost = rng.choice(code.coded, code.r, replace=False)
    return [None if i in lost else output for i, output in enumerate(outputs)]


@given(st.integers(2, 6), st.integers(1, 3), seeds)
def test_linear_coding_is_exact_for_an_affine_model(k: int, r: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    code = LinearCode(k, min(k, r))
    weights, offset = rng.normal(size=(5, 3)), rng.normal(size=3)
    queries = list(rng.normal(size=(k, 7, 5)))
    outputs = lose(code, [x @ weights + offset for x in code.encode(queries)], rng)
    for slot, answer in enumerate(code.decode(outputs)):
        np.testing.assert_allclose(answer, queries[slot] @ weights + offset, rtol=0, atol=1e-9)
        if outputs[slot] is not None:
            np.testing.assert_array_equal(answer, outputs[slot])


def test_linear_coding_is_exact_to_float32() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(20, 10)).astype(np.float32)
    queries = list(rng.normal(size=(2, 100, 20)).astype(np.float32))
    code = LinearCode(2, 1)
    outputs = [x @ weights for x in code.encode(queries)]
    answer = code.decode([None, *outputs[1:]])[0]
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, queries[0] @ weights, rtol=0, atol=3e-5)


@given(st.integers(2, 5), st.integers(0, 2), st.integers(1, 3), seeds)
def test_lagrange_coding_is_exact_for_a_polynomial(k: int, r: int, degree: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    code = LagrangeCode(k, r, degree)
    assert code.coded == (k - 1) * degree + 1 + r
    factors = rng.normal(size=(degree, 4, 3))
    offsets = rng.normal(size=(degree, 3))

    def polynomial(x: np.ndarray) -> np.ndarray:
        values: np.ndarray = np.prod([x @ f + o for f, o in zip(factors, offsets, strict=True)], 0)
        return values

    queries = list(rng.normal(size=(k, 7, 4)))
    outputs = lose(code, [polynomial(x) for x in code.encode(queries)], rng)
    scale = max(float(np.abs(output).max()) for output in outputs if output is not None)
    for query, answer in zip(queries, code.decode(outputs), strict=True):
        np.testing.assert_allclose(answer, polynomial(query), rtol=0, atol=1e-7 * scale)


@given(codes(), st.data())
def test_decodable_says_exactly_what_decode_does(
    code: TrainingFreeCode, data: st.DataObject
) -> None:
    arrived = data.draw(st.lists(st.booleans(), min_size=code.coded, max_size=code.coded))
    outputs = [np.ones((2, 3), np.float32) if here else None for here in arrived]
    if code.decodable(arrived):
        assert [answer.shape for answer in code.decode(outputs)] == [(2, 3)] * code.k
    else:
        with pytest.raises(UndecodableError, match=f"the {code.name} code cannot decode"):
            code.decode(outputs)


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


def test_lagrange_coding_is_exact_to_float32_for_the_quadratic_network() -> None:
    network = build_network("quadratic", (1, 4, 4), (5,))
    queries = np.random.default_rng(0).normal(size=(4, 7, 1, 4, 4)).astype(np.float32)

    def run(inputs: Array) -> Array:
        with torch.no_grad():
            outputs: Array = network(torch.from_numpy(inputs)).numpy()
        return outputs

    code = LagrangeCode(4, 1, degree=2)
    outputs = [run(coded) for coded in code.encode(list(queries))]
    for lost in range(code.coded):
        decoded = code.decode([None if i == lost else one for i, one in enumerate(outputs)])
        np.testing.assert_allclose(decoded, [run(query) for query in queries], atol=1e-4)


def test_only_linear_coding_sends_the_queries_themselves() -> None:
    assert LinearCode(3, 2).systematic
    for code in (BerrutCode(3, 1), LagrangeCode(3, 1, 2), NestedRegressionCode(3, 1)):
        assert not code.systematic
    assert [LinearCode(4, 1).overhead, BerrutCode(4, 1).overhead] == [0.25, 0.25]
    assert LagrangeCode(2, 1, 2).overhead == 1


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
        (lambda: LinearCode(2, -1), "r of 0 or more"),
        (lambda: LinearCode(2, 3), "r from 0 to k=2"),
        (lambda: LagrangeCode(2, 1, 0), "degree 1 or more"),
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


def test_a_linear_model_loses_nothing_under_linear_coding() -> None:
    inputs, labels, weights = data(100)
    measured = evaluate_training_free(lambda x: x @ weights, LinearCode(2, 1), inputs, labels)
    assert (measured.name, measured.overhead) == ("linear", 0.5)
    assert measured.available == measured.degraded[0] == 0.75
    assert measured.overall == pytest.approx(dict.fromkeys(["0.01", "0.05", "0.1", "0.2"], 0.75))
    assert measured.encode_us is not None
    assert measured.encode_us > 0


@pytest.mark.parametrize("code", [LinearCode(3, 2), BerrutCode(3, 2)], ids=["linear", "berrut"])
def test_answers_count_as_the_definition_says(code: TrainingFreeCode) -> None:
    """One group at a time: every set unavailable in turn, only answers not F's own count."""
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
                    if not lost or slot in lost or code.name == "berrut":
                        right.append(answer.argmax() == labels[group[slot]])
        assert found == pytest.approx(np.mean(right))
    suffer = 0.1 if code.name == "linear" else 1 - 0.9**code.coded
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


def test_approaches_are_compared_for_the_groups_of_the_bundle(tmp_path: Path) -> None:
    weights = data(1)[2]
    coded = linear_bundle(tmp_path, weights, [weights] * 2, CodeSpec("sum", "subtraction", 4, 2))
    assert group_of(coded) == (4, 2)
    assert group_of(coded, k=3) == (3, 2)
    assert group_of(coded, r=1) == (4, 1)
    (tmp_path / "uncoded").mkdir()
    assert group_of(linear_bundle(tmp_path / "uncoded", weights)) == (2, 1)


def test_all_approaches_are_compared_on_the_same_queries(tmp_path: Path) -> None:
    inputs, labels, weights = data(60)
    bundle = linear_bundle(
        tmp_path, weights, [weights], CodeSpec("sum", "subtraction", 2), backup=-weights
    )
    split = Split(inputs, labels)
    compared = {one.name: one for one in compare_approaches(bundle, split, split)}
    assert list(compared) == [
        "sum + subtraction, k=2, r=1",
        "approximate backup",
        "replication",
        "default prediction",
        "linear",
        "lagrange",
        "berrut",
        "nercc",
    ]
    exact = ("sum + subtraction, k=2, r=1", "replication", "linear", "lagrange", "berrut")
    assert [compared[name].degraded[0] for name in exact] == [0.75] * 5
    assert compared["approximate backup"].degraded[0] < 0.5
    printed = StringIO()
    Console(file=printed, width=80).print(approaches_table(list(compared.values()), "here"))
    assert all(name.split()[0] in printed.getvalue() for name in compared)
    with pytest.raises(CodeError, match="k of 2 or more"):
        next(compare_approaches(bundle, split, split, k=1))
