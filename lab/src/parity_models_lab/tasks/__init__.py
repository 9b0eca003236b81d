"""Tasks: a source of data, and the metric that judges predictions.

A task is a small class, a subclass of `Task`, that says everything about itself. Commands take the
paper's datasets that are not in `TASKS` as `parity_models_lab.tasks:Cifar10`.
"""

from parity_models.errors import UserError
from parity_models.registry import Registry, say
from parity_models.tasks import METRICS
from parity_models_lab.tasks.datasets import (
    Cifar10,
    Diabetes,
    Digits,
    FashionMnist,
    FashionMnistPixels,
    Mnist,
)
from parity_models_lab.tasks.made import MadeBoxes, MadeSpeech
from parity_models_lab.tasks.task import Dataset, Split, Task, check_dataset, load_dataset

TASKS = Registry[Task]("task", Task, Digits, Mnist, FashionMnist, FashionMnistPixels, Diabetes)
"""The tasks that have a short name."""


def find_task(name: str) -> Task:
    """Return the task that the user names: one of TASKS, or package.module:Class, with its options.

    Raises UserError for unknown names.
    """
    kind, options = TASKS.parse(name)
    try:
        task = kind(options)
    except (Exception, SystemExit) as error:  # the user's class may raise anything
        raise UserError(f"{name} cannot be made: {say(error)}") from error
    task.name = name
    metric = getattr(task, "metric", None)
    if metric not in METRICS:
        raise UserError(f"{name} has the metric {metric!r}; there are {', '.join(METRICS)}")
    return task


__all__ = [
    "TASKS",
    "Cifar10",
    "Dataset",
    "Diabetes",
    "FashionMnist",
    "MadeBoxes",
    "MadeSpeech",
    "Split",
    "Task",
    "check_dataset",
    "find_task",
    "load_dataset",
]
