"""Predictions are scored by metrics, which follow from them; labels are read as they stand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import r2_score

from parity_models.errors import DataError, UserError
from parity_models.tasks.metrics import (
    METRICS,
    agreement,
    choose_metric,
    labels_from,
    load_labels,
    recognise,
    score,
)

QUERIES = np.random.default_rng(0).normal(size=(7, 3, 4, 5)).astype(np.float32)


def saved(folder: Path, array: NDArray[Any]) -> Path:
    np.save(folder / "labels.npy", array)
    return folder / "labels.npy"


def test_labels_are_classes_or_what_a_model_should_put_out(tmp_path: Path) -> None:
    classes = load_labels(saved(tmp_path, np.arange(7, dtype=np.uint8)), "top-5", 7, (7,))
    assert classes.dtype == np.int64
    values = load_labels(saved(tmp_path, QUERIES.astype(float)), "r2", 7, QUERIES.shape[1:])
    np.testing.assert_array_equal(values, QUERIES)
    for whole in (np.arange(7, dtype=np.uint8), np.arange(7)[:, None]):
        numbers = load_labels(whole, "r2", 7, (1,))
        np.testing.assert_array_equal(numbers, np.arange(7, dtype=np.float32)[:, None])


@pytest.mark.parametrize(
    ("labels", "metric", "reason"),
    [
        (np.arange(6), "top-1", "holds 6 labels for 7 inputs"),
        (np.arange(7.0), "top-1", "classes, integers of shape"),
        (np.eye(7, dtype=int), "top-1", "classes, integers of shape"),
        (np.arange(7) + 1, "top-1", "classes from 1 to 7; the model has 7, 0 to 6"),
        (np.arange(7) - 1, "top-5", "classes from -1 to 5"),
        (np.ones((7, 3)), "r2", r"takes numbers of \(n, 7\)"),
        (np.full((7, 7), np.nan), "r2", "NaN"),
        (np.arange(28.0)[::-1].reshape(7, 4), "iou", "are not boxes"),
    ],
)
def test_labels_that_cannot_be_are_refused(
    labels: NDArray[Any], metric: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=reason):
        load_labels(saved(tmp_path, labels), metric, 7, (4,) if metric == "iou" else (7,))


def test_the_metric_follows_from_the_shape_of_predictions_unless_it_is_named() -> None:
    assert choose_metric(None, (10,)) == "top-1"
    for shape in [(), (1,), (3, 10)]:
        assert choose_metric(None, shape) == "r2"
    assert choose_metric("iou", (4,)) == "iou"
    for metric, shape in [("top-1", (1,)), ("top-5", ()), ("top-1", (3, 10)), ("iou", (5,))]:
        with pytest.raises(UserError, match="use metric='r2'"):
            choose_metric(metric, shape)
    with pytest.raises(UserError, match="no metric is called 'magic'; there are top-1"):
        choose_metric("magic", (10,))


def test_a_model_labels_with_its_classes_or_its_predictions() -> None:
    predictions = np.eye(3, dtype=np.float32)[[2, 0, 1]]
    np.testing.assert_array_equal(labels_from(predictions, "top-1"), [2, 0, 1])
    np.testing.assert_array_equal(labels_from(predictions, "r2"), predictions)
    boxes = np.array([[0.1, 0.2, 0.5, 0.6]], np.float32)
    np.testing.assert_array_equal(labels_from(boxes, "iou"), boxes)
    with pytest.raises(DataError, match="are not boxes, which iou judges"):
        labels_from(boxes[:, ::-1], "iou")


def test_classes_are_scored_by_the_largest_outputs() -> None:
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert score("top-1", outputs, np.array([1, 0, 0, 0])) == 0.75
    outputs = np.tile(np.arange(8.0), (3, 1))
    assert score("top-5", outputs, np.array([7, 3, 2])) == pytest.approx(2 / 3)


def test_iou_is_the_area_in_common_over_that_of_both() -> None:
    label = np.array([[0.0, 0.0, 1.0, 0.5]])
    for box, expected in [
        ([0.0, 0.0, 1.0, 0.5], 1.0),
        ([0.0, 0.0, 0.5, 0.5], 0.5),
        ([0.5, 0.0, 1.5, 0.5], 1 / 3),
        ([0.0, 0.6, 1.0, 0.9], 0.0),
        ([1.0, 0.5, 0.0, 0.0], 0.0),
    ]:
        assert score("iou", np.array([box]), label) == pytest.approx(expected)
    assert score("iou", np.zeros((1, 4)), np.zeros((1, 4))) == 0


def test_r2_is_scikit_learns_and_may_be_negative() -> None:
    random = np.random.default_rng(0)
    labels = random.normal(size=(50, 3)).astype(np.float32)
    for noise in (0.0, 0.5, 3.0):
        outputs = (labels + noise * random.normal(size=labels.shape)).astype(np.float32)
        expected = r2_score(labels, outputs)
        assert score("r2", outputs, labels) == pytest.approx(expected, abs=1e-5)
    assert expected < 0
    assert np.isnan(METRICS["r2"](outputs[:1], labels[:1]))
    with pytest.raises(DataError, match="has no meaning"):
        score("r2", outputs[:1], labels[:1])


def test_r2_is_of_the_numbers_that_vary() -> None:
    random = np.random.default_rng(0)
    varied = random.normal(size=(50, 2)).astype(np.float32)
    outputs = varied + random.normal(size=varied.shape).astype(np.float32)
    constant = np.full((50, 1), 0.1, np.float32)
    labels = np.concatenate([varied, constant], axis=1)
    guessed = np.concatenate([outputs, constant + 1], axis=1)
    assert score("r2", guessed, labels) == pytest.approx(score("r2", outputs, varied))
    with pytest.raises(DataError, match="has no meaning"):
        score("r2", constant + 1, constant)


def test_r2_of_maps_is_of_all_their_numbers_together() -> None:
    """If values hardly vary, a small error is many times the variance."""
    random = np.random.default_rng(0)
    labels = random.normal(size=(50, 1, 4, 5)).astype(np.float32)
    labels[:, :, :, 0] *= 1e-5
    outputs = (labels + 0.1 * random.normal(size=labels.shape)).astype(np.float32)
    flat = [each.reshape(50, -1) for each in (labels, outputs)]
    assert score("r2", *flat[::-1]) < -1e6
    expected = r2_score(*flat, multioutput="variance_weighted")
    assert score("r2", outputs, labels) == pytest.approx(expected, abs=1e-5)
    assert expected > 0.9


@pytest.mark.parametrize(
    ("metric", "outputs", "labels"),
    [
        ("top-1", (4, 3), np.zeros((4, 1), np.int64)),
        ("top-1", (4, 3), np.zeros(4, np.float32)),
        ("iou", (4, 4), np.zeros(4, np.int64)),
        ("r2", (4, 1), np.zeros(4, np.float32)),
    ],
)
def test_bad_labels_are_refused(metric: str, outputs: tuple[int, ...], labels: np.ndarray) -> None:
    with pytest.raises(DataError, match="takes labels"):
        score(metric, np.zeros(outputs, np.float32), labels)


def test_agreement_is_with_the_models_classes_or_else_its_predictions() -> None:
    ours, theirs = np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([[3.0, 9.0], [1.0, 2.0]])
    assert agreement("top-1", ours, theirs) == agreement("top-5", ours, theirs) == 0.5
    assert agreement("r2", theirs, theirs) == 1


NUMBERS = np.random.default_rng(0).normal(size=(50, 9)).astype(np.float32)
SHARES = np.exp(NUMBERS) / np.exp(NUMBERS).sum(axis=1, keepdims=True)
UNIT = NUMBERS / np.linalg.norm(NUMBERS, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("predictions", "metric", "expected"),
    [
        (NUMBERS, None, "logits"),
        (NUMBERS, "r2", "numbers"),
        (NUMBERS, "top-5", "logits"),
        (NUMBERS[:, :1], None, "numbers"),
        (NUMBERS.reshape(50, 3, 3), None, "numbers"),
        (SHARES, None, "probabilities"),
        (UNIT, None, "embeddings"),
        (UNIT, "top-1", "logits"),
        (SHARES[:, :4], "iou", "boxes"),
    ],
)
def test_kind_of_predictions_is_known(
    predictions: NDArray[Any], metric: str | None, expected: str
) -> None:
    assert recognise(predictions, metric) == expected
