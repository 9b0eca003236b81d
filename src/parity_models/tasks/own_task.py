"""A task of the user's own: what it raises is said in a sentence, what it loads is checked."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from parity_models.errors import DataError, UserError
from parity_models.registry import say
from parity_models.tasks.labels import check_floats
from parity_models.tasks.metrics import METRICS, check_labels
from parity_models.tasks.task import Dataset, Task

Result = TypeVar("Result")


class OwnTask(Task):
    """`task`, under the `name` that the user typed: package.module:Class."""

    def __init__(self, name: str, task: Task) -> None:
        super().__init__()
        self.name = name
        self.about = task.about
        self.metric = task.metric
        self.flips = task.flips
        self._task = task

    def load(self, folder: Path | None = None) -> Dataset:
        dataset = self._ask(self._task.load, folder)
        try:
            if not isinstance(dataset, Dataset):
                raise DataError(f"it gives {type(dataset).__name__}, not a Dataset")
            check_dataset(self.metric, dataset)
        except DataError as error:
            raise DataError(f"the data of {self.name} cannot be used: {error}") from error
        return dataset

    def find(self, folder: Path | None = None) -> str | None:
        return self._ask(self._task.find, folder)

    def _ask(self, method: Callable[[Path | None], Result], folder: Path | None) -> Result:
        try:
            return method(folder)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # the user's class may raise anything
            raise DataError(f"{self.name}.{method.__name__} failed: {say(error)}") from error


def check_dataset(metric: str, dataset: Dataset) -> None:
    """Raise DataError unless models can be trained on `dataset` and judged by `metric`."""
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
