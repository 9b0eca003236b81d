"""parm backup: an approximate backup for a deployed model, put into its bundle."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from parity_models.cli.accuracy import Agreements
from parity_models.cli.code import AllowCode
from parity_models.cli.queries import DataDir
from parity_models.cli.training import (
    Device,
    Epochs,
    Flips,
    Imitates,
    Inputs,
    MetricName,
    OutputKindName,
    OwnTask,
    Resume,
    Seconds,
    Seed,
    measure,
    tell,
)
from parity_models.models.bundle import open_bundle
from parity_models.models.networks import NETWORKS
from parity_models.training import Settings, progress_bar, train_backup
from parity_models.training.held_out import find_queries
from parity_models.training.run import check_settings
from parity_models.training.subject import imitating

NetworkName = Annotated[
    str,
    typer.Option(
        help=f"One cheaper than the deployed model's, of {', '.join(NETWORKS.names)}, "
        "or one of yours, package.module:name.",
        metavar="NETWORK",
    ),
]
Keep = Annotated[
    bool,
    typer.Option(
        "--keep",
        help="Keep the backups that the bundle has: the new one comes beside them, and late "
        "queries are asked of the best one for them.",
    ),
]


def backup(
    bundle: Annotated[
        Path,
        typer.Option("--from", help="What parm-lab train or parm parity wrote.", metavar="BUNDLE"),
    ],
    network: NetworkName,
    out: Annotated[
        Path, typer.Option(help="The bundle to write; may be the same.", metavar="BUNDLE")
    ],
    task: OwnTask = None,
    inputs: Inputs = None,
    imitates: Imitates = None,
    metric: MetricName = None,
    output_kind: OutputKindName = None,
    agreement: Agreements = None,
    flips: Flips = False,
    keep: Keep = False,
    epochs: Epochs = None,
    seconds: Seconds = None,
    seed: Seed = 0,
    device: Device = None,
    data_dir: DataDir = None,
    resume: Resume = False,
    allow_code: AllowCode = None,
) -> None:
    """Train a cheaper network as a backup for a deployed model.

    The backup learns the deployed model's own predictions, for the queries of its task or for
    --inputs: for a model with several inputs, of integers or of lengths that vary, an .npz file
    with an array for each. The bundle that is written holds all that the given one does, and the
    backup, in place of its own unless you --keep these. Accuracy is measured on a test set,
    printed, and put into the bundle; for --inputs it is agreement with the deployed model. Ctrl-C
    ends training early and writes the best so far; a checkpoint beside the bundle allows to
    --resume.
    """
    settings = Settings(epochs, seconds, seed, device, resume)
    check_settings(out, settings)
    opened = imitating(open_bundle(bundle, allow_code or ()), imitates)
    k = 1 if opened.manifest.code is None else opened.manifest.code.k
    queries = find_queries(opened, task, inputs, data_dir, metric, flips, k)
    with progress_bar(f"backup ({network})", queries.metric or "score") as bar:
        outcome = train_backup(
            opened,
            network,
            queries.train,
            out,
            replace(settings, report=bar, predicted=bar.predicted),
            validation=queries.validation,
            metric=queries.metric,
            output_kind=output_kind,
            mirrored=queries.flips,
            keep=keep,
        )
    measure(outcome.bundle, queries, agreement or ())
    tell(outcome)
