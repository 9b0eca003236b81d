"""Agreement of a stand-in's outputs with the deployed model's, row by row."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.tasks.metrics import METRICS, PredictionKind, overlaps

Array = NDArray[Any]

SAME_BOX = 0.5
"""Of their union, two boxes of the same object have at least so much in common (the criterion of
PASCAL VOC: Everingham et al., IJCV 2010)."""

SAME_VALUES = 0.1
"""Squared distance from F's prediction, as a share of the variance of F's predictions, up to which
values say the same: such rows alone would have an R² of at least 0.9."""


@dataclass(frozen=True)
class Agreement:
    """Agreement with a prediction: the same class, a box that overlaps it by `tolerance` (IoU) at
    least, or values at a distance (Euclidean) of `tolerance` at most."""

    kind: PredictionKind
    tolerance: float

    def __call__(self, outputs: Array, predictions: Array) -> NDArray[np.bool_]:
        """Return for each of `outputs` (n, *output_shape) whether it agrees with F's: (n,)."""
        same: NDArray[np.bool_]
        if self.kind == "classes":
            same = _largest(outputs) == _largest(predictions)
            return same
        with np.errstate(all="ignore"):
            if self.kind == "boxes":
                same = overlaps(outputs, predictions) >= self.tolerance
            else:
                off = (outputs.astype(np.float64) - predictions).reshape(len(outputs), -1)
                same = np.linalg.norm(off, axis=1) <= self.tolerance
        return same


def _largest(outputs: Array) -> NDArray[np.intp]:
    """Where each of `outputs` (n, *output_shape), of any shape, is the largest: (n,)."""
    places: NDArray[np.intp] = outputs.reshape(len(outputs), prod(outputs.shape[1:])).argmax(axis=1)
    return places


def agreement_for(metric: str, predictions: Array) -> Agreement:
    """Return what agrees under `metric`, where F's predictions are like these (n, ...)."""
    kind = METRICS[metric].kind
    if kind == "classes":
        return Agreement(kind, 0.0)
    if kind == "boxes":
        return Agreement(kind, SAME_BOX)
    variance = predictions.reshape(len(predictions), -1).var(axis=0, dtype=np.float64).sum()
    return Agreement(kind, float(np.sqrt(SAME_VALUES * variance)))
