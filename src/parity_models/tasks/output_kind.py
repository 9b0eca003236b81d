"""The kind of a model's predictions, so that its stand-ins give valid ones."""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.tasks.metrics import METRICS
from parity_models.tasks.unlabelled import choose_metric

Array = NDArray[Any]
Shape = tuple[int, ...]

OutputKind = Literal["logits", "probabilities", "boxes", "numbers", "embeddings"]
"""A score for each class, from before a softmax; a share for each class, which add up to 1; left,
top, right and bottom edges; any numbers; or vectors of length 1."""

OUTPUT_KINDS: tuple[OutputKind, ...] = get_args(OutputKind)

USUAL: dict[OutputKind, str] = {
    "logits": "top-1",
    "probabilities": "top-1",
    "boxes": "iou",
    "numbers": "r2",
    "embeddings": "cosine",
}
"""The default metric of each kind."""

NEAR = 1e-3
"""The largest distance of the sum of shares, or of the length of a vector, from 1."""

LEAST_LENGTH = 8
"""Vectors of fewer values, all of length 1, may be anything: a direction, a rotation."""


def choose_output_kind(
    named: str | None, metric: str | None, predictions: Array
) -> tuple[OutputKind, str]:
    """Return the kind of `predictions` (n, *output_shape), and the metric that judges them.

    The kind is the one `named`, else what suits the `metric` and the predictions. Raises UserError
    for a kind that there is not, and where kind, metric and predictions do not go together.
    """
    shape = predictions.shape[1:]
    if named is not None and named not in OUTPUT_KINDS:
        raise UserError(f"predictions are {', '.join(OUTPUT_KINDS)}, not {named!r}")
    kind = next((each for each in OUTPUT_KINDS if each == named), None)
    if kind is None:
        kind = recognise(predictions, metric)
    metric = choose_metric(metric or USUAL[kind], shape)
    judged, usual = METRICS[metric].kind, METRICS[USUAL[kind]].kind
    if judged != usual:
        raise UserError(
            f"{metric} judges {judged}, and predictions are {kind}; leave out --metric, or say "
            "another --output-kind"
        )
    if kind == "probabilities" and not _are_shares(predictions):
        raise UserError(
            "the deployed model's predictions are no probabilities: some are below 0, or do not "
            "add up to 1; leave out --output-kind"
        )
    return kind, metric


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
