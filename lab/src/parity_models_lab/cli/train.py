"""parm-lab train: a deployed model."""

from pathlib import Path
from typing import Annotated

import typer

import parity_models_lab.networks  # noqa: F401  # registers the lab's networks
from parity_models.cli.flags import Only
from parity_models.evaluation.judging import evaluate
from parity_models.models.networks import NETWORKS
from parity_models.tasks import TASKS, choose_task
from parity_models.training import TrainingOptions, progress_bars
from parity_models_lab.deployed import train_deployed


def train(
    task: Annotated[
        str,
        typer.Option(
            help=f"The task to learn: {', '.join(TASKS.names)}, or package.module:Class for a task "
            "of your own.",
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
    *,
    options: Annotated[
        TrainingOptions, Only("epochs", "seconds", "seed", "device", "data_dir", "resume")
    ],
) -> None:
    """Train a model to serve, if you do not have one.

    Writes a bundle without a code: the model as ONNX, its weights, and how it was trained.
    `parm parity --from DIR` then makes it resilient. The epoch that does best on a validation
    set is kept. Ctrl-C ends training early and writes the best model so far; a checkpoint
    next to DIR lets you --resume.
    """
    learned = choose_task(task)
    dataset = learned.load(None if options.data_dir is None else Path(options.data_dir))
    with progress_bars() as bars:
        trained = train_deployed(
            learned, dataset, network, out, options, recipe=recipe, callbacks=bars
        )
    evaluate(trained, task=task, data_dir=options.data_dir).show()
    for sentence in trained.ending:
        typer.echo(sentence)
