"""What parm train, parity and backup share: options, queries, and what they say in the end."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from parity_models.errors import UserError
from parity_models.evaluation.inference_table import inference_table, slowdown
from parity_models.models.bundle import Bundle
from parity_models.tasks import METRICS, TASKS, Split, choose_task, find_task
from parity_models.tasks.task import Labels
from parity_models.tasks.unlabelled import choose_metric
from parity_models.tasks.user_data import load_inputs
from parity_models.training import Outcome

HELD_OUT = 10
"""One of so many of the user's inputs is not trained on, to report accuracy on."""

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
OwnTask = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="The task whose queries to learn from, also package.module:Class for one of your "
        "own; by default the one that the deployed model was trained on.",
        metavar="TASK",
    ),
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        help="Queries to learn from, without labels, instead of a task's: an .npy or .npz file, "
        "or a folder of .npy files and images.",
        metavar="PATH",
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help=f"What accuracy is: {', '.join(METRICS)}. By default the task's; without a task "
        "top-1 for predictions that are a row of numbers, else r2.",
        metavar="NAME",
    ),
]
Flips = Annotated[
    bool,
    typer.Option("--flips", help="A query turned left to right is as good a query: train on both."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the checkpoint of a run that was cut off.")
]


@dataclass(frozen=True)
class Queries:
    """What to train on, validate with, and report on; labels only where there are any."""

    train: NDArray[np.float32]
    validation: Split | None
    test: NDArray[np.float32]
    test_labels: Labels | None
    metric: str
    flips: bool


def find_queries(
    bundle: Bundle,
    task: str | None,
    inputs: Path | None,
    data_dir: Path | None,
    metric: str | None,
    flips: bool,
    k: int,
) -> Queries:
    """The user's queries at `inputs`, or those of `task`, or of the one the model was trained on.

    Of the user's, some are held out to report on. Raises UserError if there are none, both, or
    too few for groups of k.
    """
    deployed, training = bundle.manifest.deployed, bundle.manifest.deployed_training
    shape = deployed.output.shape
    if inputs is not None and task is not None:
        raise UserError("give either --task or --inputs, not both")
    if inputs is not None:
        found = load_inputs(inputs, deployed.input.shape, least=3 * k)
        order = np.random.default_rng(1).permutation(len(found))
        rest, test = np.split(order, [len(found) - max(k, len(found) // HELD_OUT)])
        if metric is None and training is not None and training.task in TASKS:
            metric = TASKS[training.task].metric
        chosen = choose_metric(metric, shape)
        return Queries(found[rest], None, found[test], None, chosen, flips)
    if task is not None:
        chosen_task = choose_task(task)
    elif training is not None:
        chosen_task = find_task(training.task)
    else:
        raise UserError(
            "nothing says what queries the deployed model gets; give some with --inputs, an .npy "
            "file or a folder, labels are not needed"
        )
    data = chosen_task.load(data_dir)
    return Queries(
        data.train.inputs,
        data.validation,
        data.test.inputs,
        data.test.labels,
        choose_metric(metric or chosen_task.metric, shape),
        flips or chosen_task.flips,
    )


def tell(outcome: Outcome) -> None:
    """Say what was written, of which epoch, and how fast its models are."""
    fitted, bundle = outcome.fitted, outcome.bundle
    if bundle.manifest.inference_times is not None:
        Console().print(inference_table(bundle))
    slower = slowdown(bundle)
    if slower is not None:
        typer.echo(
            f"warning: a parity model takes {slower:.1f} times as long as the deployed model, so "
            "its instances keep up with less; choose a faster one with --parity-network",
            err=True,
        )
    typer.echo(
        f"{bundle.path} holds the best epoch, {fitted.best_epoch} of {fitted.epochs} "
        f"({fitted.seconds:.0f} s)"
    )
    if fitted.resumable:
        typer.echo("interrupted: this is the best so far; the same command with --resume goes on")
    elif fitted.interrupted:
        typer.echo("interrupted in the first epoch, so there is nothing to --resume")
