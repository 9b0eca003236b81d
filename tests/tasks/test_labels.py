"""Labels are read as they stand or refused with the reason; metrics follow from predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parity_models.errors import DataError, UserError
from parity_models.tasks.metrics import choose_metric, labels_from, load_labels

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
        (np.arange(7) + 1, "top-1", "classes from 1 to 7; the model tells 7 apart, 0 to 6"),
        (np.arange(7) - 1, "top-5", "classes from -1 to 5"),
        (np.ones((7, 3)), "r2", r"takes float32 of shape \(n, 7\)"),
        (np.full((7, 7), np.nan), "r2", "NaN"),
        (np.arange(28.0)[::-1].reshape(7, 4), "iou", "are no boxes"),
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
        with pytest.raises(UserError, match="use --metric r2"):
            choose_metric(metric, shape)
    with pytest.raises(UserError, match="no metric is called 'magic'; there are top-1"):
        choose_metric("magic", (10,))


def test_a_model_labels_with_its_classes_or_its_predictions() -> None:
    predictions = np.eye(3, dtype=np.float32)[[2, 0, 1]]
    np.testing.assert_array_equal(labels_from(predictions, "top-1"), [2, 0, 1])
    np.testing.assert_array_equal(labels_from(predictions, "r2"), predictions)
    boxes = np.array([[0.1, 0.2, 0.5, 0.6]], np.float32)
    np.testing.assert_array_equal(labels_from(boxes, "iou"), boxes)
    with pytest.raises(DataError, match="are no boxes, which iou judges"):
        labels_from(boxes[:, ::-1], "iou")
