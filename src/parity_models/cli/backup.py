"""parm backup: an approximate backup for a deployed model, put into its bundle."""

from pathlib import Path
from typing import Annotated

import typer

from parity_models.cli.accuracy import measure_accuracy
from parity_models.cli.training import (
    DataDir,
    Device,
    Epochs,
    Flips,
    Inputs,
    MetricName,
    OwnTask,
    Resume,
    Seconds,
    Seed,
    find_queries,
    tell,
)
from parity_models.models.bundle import open_bundle, with_accuracy
from parity_models.models.networks import NETWORKS
from parity_models.training import Settings, progress_bar, train_backup


def backup(
    bundle: Annotated[
        Path,
        typer.Option("--from", help="What parm train or parm parity wrote.", metavar="BUNDLE"),
    ],
    network: Annotated[
        str,
        typer.Option(help=f"One cheaper than the deployed model's, of {', '.join(NETWORKS)}."),
    ],
    out: Annotated[
        Path, typer.Option(help="The bundle to write; may be the same.", metavar="BUNDLE")
    ],
    task: OwnTask = None,
    inputs: Inputs = None,
    metric: MetricName = None,
    flips: Flips = False,
    epochs: Epochs = None,
    seconds: Seconds = None,
    seed: Seed = 0,
    device: Device = None,
    data_dir: DataDir = None,
    resume: Resume = False,
) -> None:
    """Train a cheaper network as a backup for a deployed model.

    The backup learns the deployed model's own predictions, for the queries of its task or for
    --inputs. The bundle that is written holds all that the given one does, and the backup, for
    `parm serve --policy approximate-backup`. Accuracy is measured on a test set, printed, and
    put into the bundle; for --inputs it is agreement with the deployed model. Ctrl-C ends
    training early and writes the best so far; a checkpoint beside the bundle allows to --resume.
    """
    opened = open_bundle(bundle)
    k = 1 if opened.manifest.code is None else opened.manifest.code.k
    queries = find_queries(opened, task, inputs, data_dir, metric, flips, k)
    with progress_bar(f"backup ({network})", queries.metric) as bar:
        outcome = train_backup(
            opened,
            network,
            queries.train,
            out,
            Settings(epochs, seconds, seed, device, resume, bar, bar.predicted),
            validation=queries.validation,
            metric=queries.metric,
            mirrored=queries.flips,
        )
    accuracy = measure_accuracy(outcome.bundle, queries.metric, queries.test, queries.test_labels)
    with_accuracy(outcome.bundle, accuracy)
    tell(outcome)
