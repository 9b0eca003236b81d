"""Metrics and labels where there are no labels: a model's own predictions count as right."""

from typing import Any

from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.tasks.metrics import METRICS, check_boxes


def choose_metric(name: str | None, output_shape: tuple[int, ...]) -> str:
    """Return the metric called `name`; by default top-1 for a row of numbers, else r2.

    Raises UserError for a metric that does not exist or cannot judge predictions of
    `output_shape`.
    """
    if name is None:
        return "top-1" if len(output_shape) == 1 and output_shape[0] > 1 else "r2"
    if name not in METRICS:
        raise UserError(f"no metric is called {name!r}; there are {', '.join(METRICS)}")
    kind = METRICS[name].kind
    if kind == "classes" and (len(output_shape) != 1 or output_shape[0] < 2):
        raise UserError(
            f"{name} judges predictions that hold a number for each class, not predictions of "
            f"shape {output_shape}; use --metric r2"
        )
    if kind == "boxes" and output_shape != (4,):
        raise UserError(
            f"{name} judges boxes, predictions of shape (4,), not {output_shape}; use --metric r2"
        )
    return name


def labels_from(predictions: NDArray[Any], metric: str) -> NDArray[Any]:
    """Return the labels that `predictions` (n, *output_shape) make right: classes, or themselves.

    Raises DataError for boxes most of which are empty.
    """
    if METRICS[metric].kind == "classes":
        classes: NDArray[Any] = predictions.argmax(axis=-1)
        return classes
    check_boxes(metric, predictions, "deployed model's predictions")
    return predictions
