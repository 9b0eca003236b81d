"""Metrics, agreement and kinds of predictions, for the outputs of models and stand-ins alike.

A metric also fixes the kind of predictions, and so how networks learn them. Without labels, the
model's own predictions count as right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from parity_models.errors import DataError, UserError, spell
from parity_models.tensors.queries import LABELS, read_arrays

Array = NDArray[Any]

Labels = NDArray[np.int64] | NDArray[np.float32]
"""Classes (n,), or the right outputs, float32 (n, *output_shape)."""

PredictionKind = Literal["classes", "boxes", "values"]
"""The kind of predictions: a score for each class; a box's left, top, right and bottom edge, as
shares of the image's width and height; or any numbers."""

AgreementKind = Literal["classes", "boxes", "values", "directions"]
"""The kind of agreement: the same class, boxes that overlap, values that are near, or vectors that
point in nearly the same direction."""

OutputKind = Literal["logits", "probabilities", "boxes", "numbers", "embeddings"]
"""The kind of a model's outputs, so that its stand-ins give valid ones: a score for each class,
before softmax; a share for each class, adding up to 1; boxes; any numbers; or vectors of length
1."""

NEAR = 1e-3
"""The largest distance of the sum of shares, or of the length of a vector, from 1."""

LEAST_LENGTH = 8
"""Vectors of fewer values, all of length 1, may be anything: a direction, a rotation."""

TINY = np.finfo(np.float64).tiny

SAME_BOX = 0.5
"""The least overlap (IoU) of two boxes of the same object (the criterion of PASCAL VOC: Everingham
et al., IJCV 2010)."""

SAME_VALUES = 0.1
"""The largest squared distance from F's prediction, as a share of the variance of F's predictions,
at which values agree: such rows alone would have an R² of at least 0.9."""


@dataclass(frozen=True)
class Metric:
    """Scores outputs (n, *output_shape) by labels, 1 at most: the mean of what `measure` returns.

    Labels are (n,) for predictions of classes, else of the shape of the outputs. `bound` is the
    least score of a prediction that agrees, if the user names one.
    """

    kind: PredictionKind
    measure: Callable[[Array, Array], Array]
    bound: float | None = None

    def __call__(self, outputs: Array, labels: Array) -> float:
        return float(np.mean(self.measure(outputs, labels)))


def top1(outputs: Array, labels: Array) -> Array:
    """Return whether the largest entry of each row of (n, classes) is at `labels` (n,): (n,)."""
    right: Array = outputs.argmax(axis=-1) == labels
    return right


def top5(outputs: Array, labels: Array) -> Array:
    """Return whether `labels` (n,) are among the five largest of each row of (n, classes): (n,)."""
    best = np.argsort(outputs, axis=-1)[..., -5:]
    right: Array = (best == labels[..., None]).any(axis=-1)
    return right


def iou(outputs: Array, labels: Array) -> Array:
    """Return the intersection over union of boxes (n, 4) and `labels`, row by row: (n,).

    Boxes are left, top, right, bottom; one whose edges are crossed is empty.
    """
    both = np.concatenate(
        [np.maximum(outputs, labels)[:, :2], np.minimum(outputs, labels)[:, 2:]], axis=1
    )
    common, *areas = (
        np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1) for boxes in (both, outputs, labels)
    )
    shares: Array = common / np.maximum(sum(areas) - common, np.finfo(np.float32).tiny)
    return shares


def r2(outputs: Array, labels: Array) -> Array:
    """Return the share of the variance of `labels` (n, ...) that `outputs` explain, for each number
    of a label that varies; the numbers of a map are taken together.

    0 is as good as the mean of the labels; worse outputs give less. It is NaN, without meaning, if
    none varies, as for a single query.
    """
    together = is_map(labels.shape[1:])
    labels = labels.astype(np.float64).reshape(len(labels), -1)
    wrong = np.square(outputs.reshape(labels.shape) - labels).sum(axis=0)
    varied = np.square(labels - labels.mean(axis=0)).sum(axis=0)
    telling = np.ptp(labels, axis=0) > 0
    if not telling.any():
        return np.array(np.nan)
    if together:
        return np.array(1 - wrong.sum() / varied.sum())
    shares: Array = 1 - wrong[telling] / varied[telling]
    return shares


def cosine(outputs: Array, labels: Array) -> Array:
    """Return the cosine of the angle between rows of `outputs` and `labels`, both (n, ...): (n,); 0
    for a row of zeros."""
    one, other = (each.astype(np.float64).reshape(len(each), -1) for each in (outputs, labels))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    similar: Array = (one * other).sum(axis=1) / np.maximum(lengths, TINY)
    return similar


class _Metrics(dict[str, Metric]):
    """Metrics by name; NAME@BOUND is NAME with the user's bound."""

    def __missing__(self, name: str) -> Metric:
        base, at, bound = name.partition("@")
        try:
            least = float(bound) if at else 1.0
        except ValueError:
            least = 1.0
        if base not in self or self[base].kind == "classes" or not 0 < least < 1:
            raise KeyError(name)
        return replace(self[base], bound=least)


METRICS: dict[str, Metric] = _Metrics(
    {
        "top-1": Metric("classes", top1),
        "top-5": Metric("classes", top5),
        "iou": Metric("boxes", iou),
        "r2": Metric("values", r2),
        "cosine": Metric("values", cosine),
    }
)
"""The metrics by name. METRICS["cosine@0.9"] is cosine; predictions agree at 0.9 or more. Raises
KeyError for other names, and for bounds that are not between 0 and 1."""

USUAL: dict[OutputKind, str] = {
    "logits": "top-1",
    "probabilities": "top-1",
    "boxes": "iou",
    "numbers": "r2",
    "embeddings": "cosine",
}
"""The default metric of each kind of outputs."""


def is_map(shape: Sequence[int]) -> bool:
    """Return whether predictions of this shape are maps: channels, height and width.

    Their numbers have one unit, and vary little at the edges, so they are judged together; the
    numbers of a row are judged one by one.
    """
    return len(shape) >= 3


def score(metric: str, outputs: Array, labels: Array) -> float:
    """Return the score of `outputs` (n, *output_shape) by `labels` under a metric, at most 1.

    Raises DataError for labels that do not fit the outputs, or give the metric no meaning.
    """
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
    scored = METRICS[metric](outputs, labels)
    if np.isnan(scored) and np.isfinite(outputs).all():
        raise DataError(
            f"all {len(labels)} labels are the same, so {metric} has no meaning; give more queries"
        )
    return scored


def check_boxes(metric: str, outputs: Array, what: str) -> None:
    """Raise DataError if the metric judges boxes and most of `outputs` (n, 4) are empty."""
    if METRICS[metric].kind == "boxes" and (outputs[:, 2:] > outputs[:, :2]).all(1).mean() < 0.5:
        raise DataError(
            f"the {what} are not boxes, which {metric} judges: left, top, right, bottom; use "
            f"{spell('metric', 'r2')}"
        )


def choose_metric(name: str | None, output_shape: tuple[int, ...]) -> str:
    """Return the metric called `name`; by default top-1 for a row of numbers, else r2.

    Raises UserError for a metric that does not exist or cannot judge predictions of
    `output_shape`.
    """
    is_row = len(output_shape) == 1 and output_shape[0] > 1
    if name is None:
        return "top-1" if is_row else "r2"
    try:
        kind = METRICS[name].kind
    except KeyError:
        raise UserError(
            f"no metric is called {name!r}; there are {', '.join(METRICS)}, and, with a bound for "
            "agreement, iou@0.7, cosine@0.9, r2@0.8"
        ) from None
    if kind == "classes" and not is_row:
        raise UserError(
            f"{name} judges predictions that hold a number for each class, not predictions of "
            f"shape {output_shape}; use {spell('metric', 'r2')}"
        )
    if kind == "boxes" and output_shape != (4,):
        raise UserError(
            f"{name} judges boxes, predictions of shape (4,), not {output_shape}; use "
            f"{spell('metric', 'r2')}"
        )
    return name


# The model's predictions as labels


def labels_from(predictions: Array, metric: str) -> Array:
    """Return labels by which `predictions` (n, *output_shape) are right: classes, or themselves.

    Raises DataError if they should be boxes and most are empty.
    """
    if METRICS[metric].kind == "classes":
        known = np.ptp(predictions, axis=-1) != 0  # equal values say no class
        classes: Array = np.where(known, predictions.argmax(axis=-1), -1)
        return classes
    check_boxes(metric, predictions, "deployed model's predictions")
    return predictions


def agreement(metric: str, outputs: Array, predictions: Array) -> float:
    """Return the share of `outputs` with the class of a model's `predictions`, both (n,
    *output_shape); for other metrics, their score with the predictions as labels."""
    if METRICS[metric].kind == "classes":
        return METRICS["top-1"](outputs, predictions.argmax(axis=-1))
    return score(metric, outputs, predictions)


@dataclass(frozen=True)
class Agreement:
    """Agreement with a prediction: the same class, a box that overlaps it by `tolerance` (IoU) at
    least, values at a distance (Euclidean) of `tolerance` at most, or a direction whose cosine with
    it is `tolerance` at least."""

    kind: AgreementKind
    tolerance: float

    def __call__(self, outputs: Array, predictions: Array) -> NDArray[np.bool_]:
        """Return whether each of `outputs` (n, *output_shape) agrees with F's prediction: (n,)."""
        if self.kind == "classes" and len(outputs) == 1:  # as of a service: two fifths of the time
            right = predictions.reshape(-1)
            at = right.argmax()
            known = right[at] != right[right.argmin()]
            return np.array([known and outputs.argmax() == at])
        if self.kind == "classes":
            size = prod(outputs.shape[1:])
            one, other = (each.reshape(len(each), size) for each in (outputs, predictions))
            known = other.max(axis=1) != other.min(axis=1)  # equal values say no class
            return np.asarray((one.argmax(axis=1) == other.argmax(axis=1)) & known)
        with np.errstate(all="ignore"):
            if self.kind == "boxes":
                same = iou(outputs, predictions) >= self.tolerance
            elif self.kind == "directions":
                same = cosine(outputs, predictions) >= self.tolerance
            else:
                off = (outputs.astype(np.float64) - predictions).reshape(len(outputs), -1)
                same = np.linalg.norm(off, axis=1) <= self.tolerance
        return np.asarray(same)


def agreement_for(metric: str, predictions: Array) -> Agreement:
    """Return the agreement under `metric`, where F's predictions are like these (n, ...)."""
    kind, bound = METRICS[metric].kind, METRICS[metric].bound
    if kind == "classes":
        return Agreement(kind, 0.0)
    if kind == "boxes":
        return Agreement(kind, SAME_BOX if bound is None else bound)
    if bound is not None and METRICS[metric].measure is cosine:
        return Agreement("directions", bound)
    variance = predictions.reshape(len(predictions), -1).var(axis=0, dtype=np.float64).sum()
    apart = SAME_VALUES if bound is None else 1 - bound
    return Agreement(kind, float(np.sqrt(apart * variance)))


# The kind of a model's outputs


def recognise(predictions: Array, metric: str | None = None) -> OutputKind:
    """Return the kind that `predictions` (n, *output_shape) look like, if `metric` judges them."""
    judged = None if metric is None else METRICS[choose_metric(metric, predictions.shape[1:])].kind
    if judged == "boxes":
        return "boxes"
    row = predictions.ndim == 2 and predictions.shape[1] > 1
    if row and judged in (None, "classes") and _are_shares(predictions):
        return "probabilities"
    if row and judged in (None, "values") and _are_unit(predictions):
        return "embeddings"
    if judged is None:
        return "logits" if row else "numbers"
    return "logits" if judged == "classes" else "numbers"


def _are_shares(predictions: Array) -> bool:
    sums = predictions.sum(axis=-1, dtype=np.float64)
    return bool((predictions >= 0).all() and (np.abs(sums - 1) <= NEAR).all())


def _are_unit(predictions: Array) -> bool:
    lengths = np.linalg.norm(predictions.astype(np.float64), axis=-1)
    return predictions.shape[1] >= LEAST_LENGTH and bool((np.abs(lengths - 1) <= NEAR).all())


# The user's labels


def load_labels(
    given: Path | str | ArrayLike, metric: str, rows: int, output_shape: tuple[int, ...]
) -> Array:
    """Return the labels of queries. Nothing is unpickled.

    Give an array, or an .npy or .npz file of one array or with one called "labels". Returns
    classes, int64 (n,), if the metric judges classes, else float32 (n, *output_shape), which may be
    given as (n,) if predictions are single numbers. Raises DataError for labels that do not fit
    this many rows.
    """
    if isinstance(given, str | Path):
        path, arrays = str(given), read_arrays(Path(given), labels=True)
        if len(arrays) > 1 and LABELS not in arrays:
            found = ", ".join(arrays)
            raise DataError(f"{path} holds {found}; call the array to be read {LABELS!r}")
        labels = arrays[LABELS] if LABELS in arrays else next(iter(arrays.values()))
    else:
        path, labels = "the array of labels", np.asarray(given)
    labels = np.atleast_1d(labels)
    if len(labels) != rows:
        raise DataError(f"{path} holds {len(labels)} labels for {rows} inputs; give one for each")
    if METRICS[metric].kind != "classes":
        with np.errstate(over="ignore"):  # infinities are refused afterwards
            labels = labels.astype(np.float32)  # integers, too: not scaled as pixels are
        if labels.ndim == 1 and prod(output_shape) == 1:
            labels = labels.reshape(-1, *output_shape)
        if labels.shape[1:] != output_shape:
            needed = ", ".join(map(str, ("n", *output_shape)))
            raise DataError(
                f"{path} has labels of shape {labels.shape}; {metric} takes numbers of ({needed})"
            )
        if not np.isfinite(labels).all():
            raise DataError(f"{path} holds NaN or infinite values; leave such rows out")
        check_boxes(metric, labels, f"labels in {path}")
    elif labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds {labels.dtype} of shape {labels.shape}; the labels for {metric} are "
            "classes, integers of shape (n,)"
        )
    elif labels.size and not 0 <= labels.min() <= labels.max() < output_shape[0]:
        raise DataError(
            f"{path} holds classes from {labels.min()} to {labels.max()}; the model has "
            f"{output_shape[0]}, 0 to {output_shape[0] - 1}"
        )
    else:
        labels = labels.astype(np.int64)
    return labels
