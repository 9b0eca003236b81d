"""The options of commands that judge a bundle: the bundle, and the queries it is judged on."""

from pathlib import Path
from typing import Annotated

import typer

from parity_models.models.bundle import Bundle
from parity_models.tasks import TASKS, Task, choose_task, find_task

BundleFolder = Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")]
TestTask = Annotated[
    str | None,
    typer.Option(
        "--task",
        help=f"The task whose test set to use ({', '.join(TASKS.names)}, or package.module:Class); "
        "by default the one that the deployed model was trained on.",
        metavar="TASK",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="The folder of the task's data; by default $PARM_DATA and the usual places.",
        metavar="DIR",
    ),
]
GroupSeed = Annotated[int, typer.Option("--seed", help="Draws the groups.", min=0, metavar="N")]


def task_of(bundle: Bundle, name: str | None) -> Task | None:
    """The task called `name`, else the one that the deployed model was trained on, if it says so.

    Raises UserError for names that are not there.
    """
    if name is not None:
        return choose_task(name)
    training = bundle.manifest.deployed_training
    return None if training is None else find_task(training.task)
