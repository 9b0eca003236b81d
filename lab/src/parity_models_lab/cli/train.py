"""parm-lab train: a deployed model."""

from pathlib import Path
from typing import Annotated

import typer

from parity_models.cli.accuracy import measure_accuracy
from parity_models.cli.queries import DataDir
from parity_models.cli.training import Device, Epochs, Resume, Seconds, Seed, tell
from parity_models.models.bundle import with_accuracy
from parity_models.models.networks import NETWORKS
from parity_models.tasks import TASKS, choose_task
from parity_models.training import Settings, progress_bar, train_deployed


def train(
    task: Annotated[
        str,
        typer.Option(
            help=f"What to learn: {', '.join(TASKS.names)}, or package.module:Class for a task of "
            "your own.",
            metavar="TASK",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.", metavar="DIR")],
    network: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(NETWORKS.names)}, one with a multiple of its channels "
            "(resnet18@0.25), or package.module:name for one of your own.",
            metavar="NETWORK",
        ),
    ] = "mlp",
    recipe: Annotated[
        str,
        typer.Option(
            help="usual is the best known here; published trains with the paper's optimiser, to "
            "compare with.",
            metavar="[usual|published]",
        ),
    ] = "usual",
    epochs: Epochs = None,
    seconds: Seconds = None,
    seed: Seed = 0,
    device: Device = None,
    data_dir: DataDir = None,
    resume: Resume = False,
) -> None:
    """Train a deployed model on a task.

    Writes a bundle without a code: the model as ONNX, its weights, and how it was trained.
    `parm parity --from DIR` then makes it resilient. The epoch that does best on a validation
    set is kept. Ctrl-C ends training early and writes the best model so far; a checkpoint
    beside DIR allows to --resume.
    """
    learned = choose_task(task)
    dataset = learned.load(data_dir)
    with progress_bar(f"deployed model ({network})", learned.metric) as report:
        settings = Settings(epochs, seconds, seed, device, resume, report)
        outcome = train_deployed(learned, dataset, network, out, settings, recipe=recipe)
    accuracy = measure_accuracy(
        outcome.bundle, learned.metric, dataset.test.inputs, dataset.test.labels
    )
    with_accuracy(outcome.bundle, accuracy)
    tell(outcome)
