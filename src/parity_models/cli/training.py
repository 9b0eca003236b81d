"""What parm-lab train, parity and backup share: options, and what they say in the end."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from parity_models.cli.accuracy import calibrate_gates, measure_accuracy, measure_gates
from parity_models.cli.duration import duration
from parity_models.errors import UserError
from parity_models.evaluation.judged_queries import metric_for
from parity_models.evaluation.tables import inference_table, slowdown
from parity_models.models.bundle import Bundle, with_accuracy
from parity_models.tasks import METRICS
from parity_models.tasks.output_kind import OUTPUT_KINDS
from parity_models.training import Outcome
from parity_models.training.held_out import Queries

Epochs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="End after so many passes over the data; by default what suits the network on two "
        "cores, unless --seconds is given.",
        metavar="N",
    ),
]
Seconds = Annotated[
    float | None,
    duration(
        "End after so much time; the learning rate is annealed to fit. With --epochs, what comes "
        "first.",
        "s",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        help="Fixes initial weights and order of data.", min=0, max=2**32 - 1, metavar="N"
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Train on this: cpu, cuda, cuda:1, mps. By default the fastest there is.",
        metavar="NAME",
    ),
]
DeployedFile = Annotated[
    Path | None,
    typer.Option(
        "--model",
        help="The deployed model, an ONNX file. Give --inputs, too.",
        metavar="FILE",
    ),
]
DeployedFolder = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="The deployed model, in place of --model: a folder that parm-lab train wrote, or "
        "another bundle.",
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
        metavar="FILE",
    ),
]
Imitates = Annotated[
    str | None,
    typer.Option(
        help="The output that stand-ins imitate, of several; by default the bundle's.",
        metavar="OUTPUT",
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help=f"What accuracy is: {', '.join(METRICS)}. By default the task's; without a task "
        "top-1 for a row of numbers, cosine for vectors of length 1, else r2.",
        metavar="NAME",
    ),
]
OutputKindName = Annotated[
    str | None,
    typer.Option(
        "--output-kind",
        help=f"What predictions are: {', '.join(OUTPUT_KINDS)}. By default what they look like.",
        metavar="KIND",
    ),
]
Flips = Annotated[
    bool,
    typer.Option("--flips", help="A query turned left to right is as good a query: train on both."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the checkpoint of a run that was cut off.")
]


def deployed_of(file: Path | None, folder: Path | None) -> Path:
    """The deployed model, of which one of the two is to be given. Raises UserError otherwise."""
    chosen = file or folder
    if chosen is None or (file and folder):
        raise UserError("name the deployed model: either --model FILE or --from DIR")
    return chosen


def measure(bundle: Bundle, queries: Queries, levels: Iterable[float]) -> None:
    """Calibrate the gates of a bundle with stand-ins, also for `levels`, and measure its accuracy
    and them; all goes into the bundle, and is printed."""
    metric = metric_for(bundle, queries.metric)
    if len(queries.calibration):
        bundle = calibrate_gates(bundle, metric, queries.calibration, levels)
    asked = (metric, queries.test, queries.test_labels)
    bundle = with_accuracy(bundle, measure_accuracy(bundle, *asked))
    measure_gates(bundle, *asked)


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
    if fitted.diverged:
        typer.echo(
            f"warning: the training diverged in epoch {fitted.epochs} and ended there, so the best "
            "epoch has learned little; train again with another --seed or network",
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
