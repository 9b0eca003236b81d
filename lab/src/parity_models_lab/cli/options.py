"""The options that several commands of `parm-lab` have."""

from pathlib import Path
from typing import Annotated, Any

from parity_models.models.bundle import Bundle
from parity_models.options import MINUTES, SECONDS, Option
from parity_models.tasks import TASKS, Task, choose_task, find_task

TestTask = Annotated[
    str | None,
    Option(
        f"The task whose test set to use ({', '.join(TASKS.names)}, or package.module:Class); by "
        "default the one that the deployed model was trained on.",
        metavar="TASK",
    ),
]
DataDir = Annotated[
    Path | None,
    Option(
        "The folder of the task's data; by default $PARM_DATA and the usual places.", metavar="DIR"
    ),
]
GroupSeed = Annotated[int, Option("Fixes how queries are grouped.", at_least=0)]
Device = Annotated[
    str | None,
    Option(
        "Train on this: cpu, cuda, cuda:1, mps. By default the fastest there is.", metavar="NAME"
    ),
]


def duration(help: str, unit: str, **bounds: Any) -> Option:
    """Return an option that is a time, in seconds ("s") or minutes ("min")."""
    return Option(help, unit=SECONDS if unit == "s" else MINUTES, typed=unit, **bounds)


def task_of(bundle: Bundle, name: str | None) -> Task | None:
    """Return the task called `name`, else the one that the deployed model was trained on.

    Raises UserError for names that are not there.
    """
    if name is not None:
        return choose_task(name)
    training = bundle.manifest.deployed_training
    return None if training is None else find_task(training.task)
