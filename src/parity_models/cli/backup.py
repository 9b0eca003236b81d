"""parm backup: an approximate backup for a deployed model, put into its bundle."""

from pathlib import Path
from typing import Annotated

import typer

from parity_models.cli.code import AllowCode
from parity_models.cli.extensions import Declared, command_for, flag_of, given_options
from parity_models.cli.training import DeployedFile, DeployedFolder, Inputs, deployed_of
from parity_models.models.networks import NETWORKS
from parity_models.options import make_options
from parity_models.training import TrainingOptions, progress_bars
from parity_models.training import backup as train_backup

COMMAND = command_for(backup=Declared(TrainingOptions))

NetworkName = Annotated[
    str,
    typer.Option(
        help=f"One cheaper than the deployed model's, of {', '.join(NETWORKS.names)}, "
        "or one of yours, package.module:name.",
        metavar="NETWORK",
    ),
]


def backup(
    context: typer.Context,
    network: NetworkName,
    out: Annotated[
        Path, typer.Option(help="The bundle to write; may be the same.", metavar="BUNDLE")
    ],
    model: DeployedFile = None,
    deployed: DeployedFolder = None,
    inputs: Inputs = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the backups that the bundle has.")
    ] = False,
    allow_code: AllowCode = None,
) -> None:
    """Train a cheaper network as a backup for a deployed model.

    The backup learns the deployed model's own predictions, for the queries of its task or for
    --inputs: for a model with several inputs, of integers or of lengths that vary, an .npz file
    with an array for each. The bundle that is written holds all that the given one does, and the
    backup, in place of its own unless you --keep these. Gates are calibrated and accuracy is
    measured on other queries, printed, and put into the bundle. Ctrl-C ends training early and
    writes the best so far; a checkpoint next to BUNDLE lets you --resume.
    """
    with progress_bars() as bars:
        trained = train_backup(
            deployed_of(model, deployed),
            inputs,
            out=out,
            network=network,
            keep=keep,
            allow_code=allow_code or (),
            callbacks=bars,
            options=make_options(TrainingOptions, given_options(context, "backup"), flag_of),
        )
    trained.show()
