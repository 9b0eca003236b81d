"""What parm train, parity and backup share: options, the task, and what they say in the end."""

from pathlib import Path
from typing import Annotated

import typer

from parity_models.errors import BundleError
from parity_models.models.bundle import Bundle
from parity_models.tasks import Task, find_task
from parity_models.training import Outcome

Epochs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="End after so many passes over the data; by default what suits the network on two "
        "cores, unless --seconds is given.",
    ),
]
Seconds = Annotated[
    float | None,
    typer.Option(
        help="End after so much time; the learning rate is annealed to fit. With --epochs, what "
        "comes first.",
    ),
]
Seed = Annotated[
    int, typer.Option(help="Fixes initial weights and order of data.", min=0, max=2**32 - 1)
]
Device = Annotated[
    str | None,
    typer.Option(help="Train on this: cpu, cuda, cuda:1, mps. By default the fastest there is."),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        help="The folder of the task's data; by default $PARM_DATA and the usual places.",
        metavar="DIR",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the checkpoint of a run that was cut off.")
]


def trained_task(bundle: Bundle) -> Task:
    """The task that the deployed model of `bundle` was trained on, or BundleError."""
    training = bundle.manifest.deployed_training
    if training is None:
        raise BundleError(
            f"{bundle.path} does not say what its model was trained on; name a folder that parm "
            "train wrote"
        )
    return find_task(training.task)


def tell(outcome: Outcome) -> None:
    """Say what was written, and of which epoch."""
    fitted = outcome.fitted
    typer.echo(
        f"{outcome.bundle.path} holds the best epoch, {fitted.best_epoch} of {fitted.epochs} "
        f"({fitted.seconds:.0f} s)"
    )
    if fitted.interrupted:
        typer.echo("interrupted: this is the best so far; the same command with --resume goes on")
