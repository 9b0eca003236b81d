"""How good outputs are: one number from 0 to 1 per metric, for models and reconstructions."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Metric = Callable[[NDArray[Any], NDArray[Any]], float]
"""Takes outputs (n, *output_shape) and labels (n, ...), gives their mean score."""


def top1(outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    """The share of rows of `outputs` (n, classes) whose largest entry is at `labels` (n,)."""
    return float(np.mean(outputs.argmax(axis=-1) == labels))


METRICS: dict[str, Metric] = {"top-1": top1}


def score(metric: str, outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    """The mean score of `outputs` under the metric called `metric`."""
    return METRICS[metric](outputs, labels)
