"""Inference tasks: datasets on disk, read into arrays, and the metric each is judged by.

A task is one small file that builds a `Task`; adding one means listing it in `TASKS` here.
"""

from parity_models.errors import UserError
from parity_models.tasks.digits import DIGITS
from parity_models.tasks.fashion_mnist import FASHION_MNIST
from parity_models.tasks.metrics import METRICS, score
from parity_models.tasks.task import Dataset, Split, Task

TASKS: dict[str, Task] = {task.name: task for task in (DIGITS, FASHION_MNIST)}


def find_task(name: str) -> Task:
    """The task called `name`. Raises UserError with the names there are."""
    try:
        return TASKS[name]
    except KeyError:
        raise UserError(f"no task is called {name!r}; there are {', '.join(TASKS)}") from None


__all__ = ["METRICS", "TASKS", "Dataset", "Split", "Task", "find_task", "score"]
