"""Inference tasks: the source of data, and the metric that judges predictions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models import options
from parity_models.errors import DataError, UserError
from parity_models.registry import say
from parity_models.tasks.metrics import METRICS, Labels, check_floats, check_labels

SPLIT_SEED = 2019
"""Splits are a property of the task: the same for every run, whatever its seed."""


@dataclass(frozen=True)
class Split:
    """Queries, float32 (n, *input_shape), normalised as models get them, and their labels."""

    inputs: NDArray[np.float32]
    labels: Labels

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: NDArray[np.int64]) -> "Split":
        """Return the queries at `rows`, in that order."""
        return Split(self.inputs[rows], self.labels[rows])


@dataclass(frozen=True)
class Dataset:
    """A task's data: to fit on, to choose the best epoch by, and to report accuracy on.

    `classes` are the names of the classes that labels number, if they do.
    """

    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one query."""
        return self.train.inputs.shape[1:]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one prediction: an entry for each class, or that of a label."""
        return (len(self.classes),) if self.classes else self.train.labels.shape[1:]


class Task(ABC):
    """An inference task.

    A subclass defines its `name`, its `Options`, and `load`. `metric` is
    a key of `metrics.METRICS`: it says what predictions are (classes, boxes or values) and thereby
    how models learn them. `flips`: training may mirror queries left to right (along the last axis).
    """

    name: str
    metric: str
    flips: bool = False

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """None."""

    def __init__(self, options: Any = None) -> None:
        self.options: Any = options or self.Options()

    @abstractmethod
    def load(self, folder: Path | None = None) -> Dataset:
        """Return the data, from the `folder` that the user named or where it usually is.

        Raises DataError where there is none or it is unsound.
        """


def load_dataset(task: Task) -> Dataset:
    """Return a task's data, checked; its class may be a user's own.

    Raises DataError for data that cannot be used, and where there are none.
    """
    try:
        dataset = task.load()
        check_dataset(task.metric, dataset)
    except DataError as error:
        raise DataError(f"the data of {task.name} cannot be used: {error}") from error
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the user's class may raise anything
        raise DataError(f"{task.name}.load failed: {say(error)}") from error
    return dataset


def check_dataset(metric: str, dataset: object) -> None:
    """Raise DataError unless models can be trained on `dataset` and judged by `metric`."""
    if not isinstance(dataset, Dataset):
        raise DataError(f"it is {type(dataset).__name__}, not a Dataset")
    classes = METRICS[metric].kind == "classes"
    if classes and not dataset.classes:
        raise DataError(f"{metric} is of classes, and the Dataset names none (classes=...)")
    for name in ("train", "validation", "test"):
        split = getattr(dataset, name)
        inputs, labels = split.inputs, split.labels
        for what, array, kinds in (("inputs", inputs, "f"), ("labels", labels, "iuf")):
            if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
                found = getattr(array, "dtype", type(array).__name__)
                raise DataError(f"{name} {what} are no array of numbers but {found}")
        check_floats(inputs, dataset.input_shape, f"{name} inputs")
        outputs = np.broadcast_to(np.float32(0), (len(inputs), *dataset.output_shape))
        check_labels(metric, outputs, labels)
        if classes and not 0 <= labels.min() <= labels.max() < len(dataset.classes):
            raise DataError(
                f"{name} labels are {labels.min()} to {labels.max()}; there are "
                f"{len(dataset.classes)} classes, from 0 on"
            )
        if not np.isfinite(labels).all():
            raise DataError(f"{name} labels hold NaN or infinite values")


def hold_out(split: Split, size: int) -> tuple[Split, Split]:
    """Part `size` queries, drawn at random but always the same, from `split`: (rest, drawn)."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(split))
    return split.take(np.sort(order[size:])), split.take(np.sort(order[:size]))
