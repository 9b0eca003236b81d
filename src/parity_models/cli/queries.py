"""The options of commands that judge a bundle: the bundle, and the queries it is judged on."""

from pathlib import Path
from typing import Annotated

import typer

from parity_models.tasks import TASKS

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
