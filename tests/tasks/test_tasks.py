"""Predictions are scored by metrics, and tasks are found by name."""

import numpy as np
import pytest
from sklearn.metrics import r2_score

from parity_models.errors import DataError
from parity_models.tasks import METRICS, agreement, score


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
    """Where they hardly vary, a small error is many times the variance."""
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
