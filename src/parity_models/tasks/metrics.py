"""Metrics: one number for the quality of outputs, of models and reconstructions alike.

A metric also fixes the kind of predictions, and that decides how networks learn them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import DataError

Array = NDArray[Any]

PredictionKind = Literal["classes", "boxes", "values"]
"""The kind of predictions: a score for each class; a box's left, top, right and bottom edge, as
shares of the image's width and height; or any numbers."""


@dataclass(frozen=True)
class Metric:
    """Called with outputs (n, *output_shape) and labels, gives their score, at most 1.

    Labels are (n,) for predictions of classes, else of the shape of the outputs.
    """

    kind: PredictionKind
    measure: Callable[[Array, Array], float]

    def __call__(self, outputs: Array, labels: Array) -> float:
        return self.measure(outputs, labels)


def top1(outputs: Array, labels: Array) -> float:
    """The share of rows of `outputs` (n, classes) whose largest entry is at `labels` (n,)."""
    return float(np.mean(outputs.argmax(axis=-1) == labels))


def top5(outputs: Array, labels: Array) -> float:
    """The share of rows of `outputs` (n, classes) with `labels` (n,) among the five largest."""
    best = np.argsort(outputs, axis=-1)[..., -5:]
    return float(np.mean((best == labels[..., None]).any(axis=-1)))


def iou(outputs: Array, labels: Array) -> float:
    """The mean over boxes (n, 4) of the area that two have in common, over that of their union."""
    return float(np.mean(overlaps(outputs, labels)))


def overlaps(outputs: Array, labels: Array) -> Array:
    """The area that each two of boxes (n, 4) have in common, over that of their union: (n,).

    Boxes are left, top, right, bottom; one whose edges are crossed is empty.
    """
    both = np.concatenate(
        [np.maximum(outputs, labels)[:, :2], np.minimum(outputs, labels)[:, 2:]], axis=1
    )
    common = _area(both)
    union = _area(outputs) + _area(labels) - common
    shares: Array = common / np.maximum(union, np.finfo(np.float32).tiny)
    return shares


def _area(boxes: Array) -> Array:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    areas: Array = sides.prod(axis=1)
    return areas


def is_map(shape: Sequence[int]) -> bool:
    """Return whether predictions of this shape are maps: channels, height and width.

    Their numbers are of one unit, and hardly vary at the edges: they are judged together, where
    numbers of a row are judged one by one.
    """
    return len(shape) >= 3


def r2(outputs: Array, labels: Array) -> float:
    """The share of the variance of `labels` (n, ...) that `outputs` explain.

    0 is as good as the mean of the labels, and worse is negative. It is the average over the
    numbers of a label that vary, and of maps the share for all of their numbers together; NaN where
    none varies, as of a single query, which gives it no meaning.
    """
    together = is_map(labels.shape[1:])
    labels = labels.astype(np.float64).reshape(len(labels), -1)
    wrong = np.square(outputs.reshape(labels.shape) - labels).sum(axis=0)
    varied = np.square(labels - labels.mean(axis=0)).sum(axis=0)
    telling = np.ptp(labels, axis=0) > 0
    if not telling.any():
        return float("nan")
    if together:
        return float(1 - wrong.sum() / varied.sum())
    return float(np.mean(1 - wrong[telling] / varied[telling]))


def cosine(outputs: Array, labels: Array) -> float:
    """The mean cosine of the angle between rows of `outputs` and of `labels`, both (n, ...)."""
    return float(np.mean(cosines(outputs, labels)))


def cosines(outputs: Array, labels: Array) -> Array:
    """The cosine of the angle between each two rows of (n, ...): (n,). 0 for a vector of zeros."""
    one, other = (each.astype(np.float64).reshape(len(each), -1) for each in (outputs, labels))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    similar: Array = (one * other).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return similar


METRICS: dict[str, Metric] = {
    "top-1": Metric("classes", top1),
    "top-5": Metric("classes", top5),
    "iou": Metric("boxes", iou),
    "r2": Metric("values", r2),
    "cosine": Metric("values", cosine),
}


def score(metric: str, outputs: Array, labels: Array) -> float:
    """Return the score of `outputs` (n, *output_shape) under the metric called `metric`, at most 1.

    `labels` are integers (n,) for a metric of classes, else (n, *output_shape). Raises DataError
    for labels that do not fit the outputs, or give the metric no meaning.
    """
    check_labels(metric, outputs, labels)
    scored = METRICS[metric](outputs, labels)
    if np.isnan(scored) and np.isfinite(outputs).all():
        raise DataError(
            f"all {len(labels)} labels are the same, so {metric} has no meaning; give more queries"
        )
    return scored


def constant_score(metric: str, labels: Array) -> float:
    """About the best score that one prediction for all queries gets: that of the commonest class,
    or classes, or of the mean label. `labels` are (n,) classes or (n, *output_shape) values."""
    if METRICS[metric].kind == "classes":
        counts = np.sort(np.unique(labels, return_counts=True)[1])
        return float(counts[-5 if metric == "top-5" else -1 :].sum() / len(labels))
    mean = labels.mean(axis=0, keepdims=True)
    return METRICS[metric](np.broadcast_to(mean, labels.shape), labels)


def check_labels(metric: str, outputs: Array, labels: Array) -> None:
    """Raise DataError for labels that do not fit the outputs (n, *output_shape), as `score` takes
    them, in shape or type."""
    if METRICS[metric].kind == "classes":
        fitting = labels.shape == outputs.shape[:-1] and np.issubdtype(labels.dtype, np.integer)
        expected = f"integers of shape {outputs.shape[:-1]}"
    else:
        fitting = labels.shape == outputs.shape
        expected = f"of shape {outputs.shape}"
    if not fitting:
        raise DataError(
            f"labels are {labels.dtype} of shape {labels.shape}; {metric} takes labels {expected} "
            f"for outputs of shape {outputs.shape}"
        )


def check_boxes(metric: str, outputs: Array, what: str) -> None:
    """Raise DataError for `outputs` (n, 4) most of which are empty, where the metric judges
    boxes."""
    if METRICS[metric].kind == "boxes" and (outputs[:, 2:] > outputs[:, :2]).all(1).mean() < 0.5:
        raise DataError(
            f"the {what} are no boxes, which {metric} judges: left, top, right, bottom; use "
            "--metric r2"
        )


def agreement(metric: str, outputs: Array, predictions: Array) -> float:
    """Return how far `outputs` agree with a model's `predictions`, both (n, *output_shape).

    The share of rows with the same class or, where predictions are no classes, the score of
    the outputs with the predictions as labels.
    """
    if METRICS[metric].kind == "classes":
        return top1(outputs, predictions.argmax(axis=-1))
    return score(metric, outputs, predictions)
