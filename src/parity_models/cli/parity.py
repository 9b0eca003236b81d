"""parm parity: parity models for a deployed model, bundled with it."""

from pathlib import Path
from typing import Annotated

import typer

from parity_models.cli.code import CODERS, AllowCode, DecoderName, EncoderName, choose_code
from parity_models.cli.extensions import Declared, command_for, flag_of, given_options
from parity_models.cli.training import DeployedFile, DeployedFolder, Inputs, deployed_of
from parity_models.models.networks import NETWORKS
from parity_models.options import make_options
from parity_models.training import TrainingOptions, progress_bars
from parity_models.training import parity as train_parity

COMMAND = command_for(parity=Declared(TrainingOptions), **CODERS)

ParityNetwork = Annotated[
    str | None,
    typer.Option(
        "--parity-network",
        "--network",
        help=f"One of {', '.join(NETWORKS.names)}, or one of yours, package.module:name. "
        "By default that of a model whose weights are in the bundle; for others the most capable "
        "that is not slower than the deployed model.",
        metavar="NETWORK",
    ),
]
ParityQueries = Annotated[
    int, typer.Option("--r", help="Parity queries, and parity models, per group.", metavar="N")
]
RecipeName = Annotated[
    str,
    typer.Option(
        help="distilled is the best known here; published trains sum or concatenation with "
        "subtraction as the paper does, to compare with.",
        metavar="[distilled|published]",
    ),
]


def parity(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="The bundle to write.", metavar="BUNDLE")],
    model: DeployedFile = None,
    deployed: DeployedFolder = None,
    inputs: Inputs = None,
    k: Annotated[int, typer.Option("--k", help="Queries in a coding group.", metavar="N")] = 2,
    r: ParityQueries = 1,
    encoder: EncoderName = None,
    decoder: DecoderName = None,
    network: ParityNetwork = None,
    recipe: RecipeName = "distilled",
    allow_code: AllowCode = None,
) -> None:
    """Train parity models for a deployed model, and bundle the two.

    Parity models learn from the deployed model's own predictions, for the queries of its task or
    for --inputs; labels are not needed. The epoch with the best degraded accuracy (A_d) on a
    validation set is kept. Gates are calibrated and accuracy is measured on other queries, printed,
    and put into the bundle. Ctrl-C ends training early and writes the best bundle so far; a
    checkpoint next to BUNDLE lets you --resume. For models with several inputs, of integers or of
    lengths that vary, queries are stacked, and the parity model is a small network that answers
    each.
    """
    usual = ("sum", "subtraction") if recipe == "published" else ("stack", "separate")
    code = choose_code(context, encoder or usual[0], decoder or usual[1], k, r)
    with progress_bars() as bars:
        trained = train_parity(
            deployed_of(model, deployed),
            inputs,
            out=out,
            code=code,
            network=network,
            recipe=recipe,
            allow_code=allow_code or (),
            callbacks=bars,
            options=make_options(TrainingOptions, given_options(context, "parity"), flag_of),
        )
    trained.show()
