"""Inference tasks: datasets on disk, read into arrays, and the metric each is judged by.

A task is a small class, a subclass of `Task`; ours are listed in `TASKS` here.
"""

from parity_models.errors import UserError
from parity_models.own_code import load_own, say
from parity_models.tasks.cats_dogs import CatsVsDogs
from parity_models.tasks.cifar import Cifar10, Cifar100
from parity_models.tasks.digits import Digits
from parity_models.tasks.localization import Localization
from parity_models.tasks.metrics import METRICS, agreement, check_labels, score
from parity_models.tasks.mnist import FashionMnist, FashionMnistPixels, Mnist
from parity_models.tasks.own_task import OwnTask, check_dataset
from parity_models.tasks.speech import SmallSpeechCommands, SpeechCommands
from parity_models.tasks.tabular import California, Diabetes
from parity_models.tasks.task import Dataset, Split, Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Digits(),
        Mnist(),
        FashionMnist(),
        FashionMnistPixels(),
        Cifar10(),
        Cifar100(),
        CatsVsDogs(),
        SpeechCommands(),
        SmallSpeechCommands(),
        Localization(),
        Diabetes(),
        California(),
    )
}


def find_task(name: str) -> Task:
    """The task of ours called `name`. Raises UserError with the names there are.

    Names out of a bundle come here: they are never imported.
    """
    try:
        return TASKS[name]
    except KeyError:
        if ":" in name:
            raise UserError(f"{name} is a task of your own; name it with --task {name}") from None
        raise UserError(
            f"no task is called {name!r}; there are {', '.join(TASKS)}, and package.module:Class "
            "for one of your own"
        ) from None


def choose_task(name: str) -> Task:
    """The task that the user names: one of ours, or package.module:Class for one of their own.

    The class is a subclass of Task and is made without arguments. Raises UserError for what is
    no task.
    """
    if ":" not in name:
        return find_task(name)
    task = load_own(name)
    if isinstance(task, type) and issubclass(task, Task):
        try:
            task = task()
        except (Exception, SystemExit) as error:  # the user's class may raise anything
            raise UserError(f"{name} cannot be made without arguments: {say(error)}") from error
    if not isinstance(task, Task):
        raise UserError(f"{name} is no subclass of parity_models.tasks.Task")
    metric = getattr(task, "metric", None)
    if metric not in METRICS:
        raise UserError(f"{name} has the metric {metric!r}; there are {', '.join(METRICS)}")
    return OwnTask(name, task)


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
    "score",
]
