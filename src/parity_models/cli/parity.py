"""parm parity: parity models for a deployed model, bundled with it."""

from pathlib import Path
from typing import Annotated

import typer

from parity_models.cli.accuracy import measure_accuracy
from parity_models.cli.training import (
    DataDir,
    Device,
    Epochs,
    Resume,
    Seconds,
    Seed,
    tell,
    trained_task,
)
from parity_models.codes import CodeSpec
from parity_models.codes.code import DECODERS, ENCODERS
from parity_models.models.bundle import open_bundle, with_accuracy
from parity_models.models.networks import NETWORKS
from parity_models.training import Settings, progress_bar, train_parity


def parity(
    deployed: Annotated[
        Path, typer.Option("--from", help="The folder that parm train wrote.", metavar="DIR")
    ],
    out: Annotated[Path, typer.Option(help="The bundle to write.", metavar="BUNDLE")],
    k: Annotated[int, typer.Option("--k", help="Queries in a coding group.")] = 2,
    r: Annotated[
        int, typer.Option("--r", help="Parity queries, and parity models, per group.")
    ] = 1,
    encoder: Annotated[str, typer.Option(help=f"One of {', '.join(ENCODERS)}.")] = "stack",
    decoder: Annotated[str, typer.Option(help=f"One of {', '.join(DECODERS)}.")] = "separate",
    network: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(NETWORKS)}; by default the deployed model's."),
    ] = None,
    epochs: Epochs = None,
    seconds: Seconds = None,
    seed: Seed = 0,
    device: Device = None,
    data_dir: DataDir = None,
    resume: Resume = False,
) -> None:
    """Train parity models for a deployed model, and bundle the two.

    Parity models learn from the deployed model's own predictions for the queries of its task.
    The epoch with the best degraded accuracy (A_d) on a validation set is kept. Then accuracy is
    measured on the test set, printed, and put into the bundle. Ctrl-C ends training early and
    writes the best bundle so far; a checkpoint beside BUNDLE allows to --resume.
    """
    bundle = open_bundle(deployed)
    task = trained_task(bundle)
    dataset = task.load(data_dir)
    spec = CodeSpec(encoder, decoder, k, r)
    with progress_bar(f"parity model ({spec})", "A_d") as report:
        outcome = train_parity(
            bundle,
            spec,
            dataset.train.inputs,
            out,
            Settings(epochs, seconds, seed, device, resume, report),
            network=network,
            validation=dataset.validation,
            metric=task.metric,
            mirrored=task.flips,
        )
    accuracy = measure_accuracy(outcome.bundle, task, dataset.test)
    with_accuracy(outcome.bundle, accuracy)
    tell(outcome)
