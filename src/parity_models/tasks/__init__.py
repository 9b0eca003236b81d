"""Inference tasks: a source of data, and the metric that judges predictions.

A task is a small class, a subclass of `Task`, that says everything about itself.
"""

from pathlib import Path

import numpy as np

from parity_models.errors import UserError
from parity_models.registry import Registry, is_own, say
from parity_models.tasks.metrics import METRICS, agreement, check_labels, score
from parity_models.tasks.task import Dataset, OwnTask, Split, Task, check_dataset, hold_out


class Digits(Task):
    """1,797 handwritten digits (E. Alpaydin, C. Kaynak: Optical Recognition, UCI 1998)."""

    name = "digits"
    metric = "top-1"

    mean, deviation = 4.884, 6.017  # of the pixels, from 0 to 16
    test, validation = 400, 197

    def load(self, folder: Path | None = None) -> Dataset:
        """1,200 digits to train on, 197 for validation, 400 for test; `folder` is not needed."""
        from sklearn.datasets import load_digits  # here: not needed elsewhere

        images, labels = load_digits(return_X_y=True)
        inputs = ((images - self.mean) / self.deviation).astype(np.float32).reshape(-1, 1, 8, 8)
        rest, test = hold_out(Split(inputs, labels.astype(np.int64)), self.test)
        train, validation = hold_out(rest, self.validation)
        return Dataset(train, validation, test, tuple(map(str, range(10))))


TASKS = Registry[Task]("task", Task, Digits)
"""The registered tasks."""


def find_task(name: str) -> Task:
    """Return the task of ours called `name`. Raises UserError with the names that exist.

    Names out of a bundle come here: they are never imported.
    """
    if is_own(name):
        raise UserError(f"{name} is a task of your own; give its queries with --inputs")
    return _build(name)


def choose_task(name: str) -> Task:
    """Return the task that the user names: one of ours, or package.module:Class for their own.

    Raises UserError for unknown names.
    """
    if not is_own(name):
        return find_task(name)
    task = _build(name)
    metric = getattr(task, "metric", None)
    if metric not in METRICS:
        raise UserError(f"{name} has the metric {metric!r}; there are {', '.join(METRICS)}")
    return OwnTask(name, task)


def is_ours(name: str) -> bool:
    """Return whether the name stands for one of our tasks."""
    return name.partition("@")[0] in TASKS.names


def _build(name: str) -> Task:
    """Return the task that a name stands for, with the options after it; it is called so, too."""
    kind, options = TASKS.parse(name)
    try:
        task = kind(options)
    except (Exception, SystemExit) as error:  # the user's class may raise anything
        raise UserError(f"{name} cannot be made: {say(error)}") from error
    task.name = name
    return task


__all__ = [
    "METRICS",
    "TASKS",
    "Dataset",
    "Split",
    "Task",
    "agreement",
    "check_dataset",
    "check_labels",
    "choose_task",
    "find_task",
    "is_ours",
    "score",
]
