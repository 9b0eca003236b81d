"""parm protect: from a model and its queries to a bundle with the best stand-in."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from parity_models.cli.began import began
from parity_models.cli.extensions import Declared, command_for, flag_of, given_options
from parity_models.cli.json_file import Json, write_json
from parity_models.cli.training import DeployedFile, DeployedFolder, Inputs, deployed_of
from parity_models.options import make_options
from parity_models.protection.protect import protect as protect_model
from parity_models.protection.search_options import SearchOptions
from parity_models.training import progress_bars

COMMAND = command_for(protect=Declared(SearchOptions))


def protect(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="The bundle to write.", metavar="BUNDLE")],
    model: DeployedFile = None,
    deployed: DeployedFolder = None,
    inputs: Inputs = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Show why each candidate was dropped, and why one is taken or two."
        ),
    ] = False,
    json: Json = None,
) -> None:
    """Find the best stand-in for a model in a given time, and bundle the two.

    Backups and parity models of several sizes learn from the model's own predictions; labels are
    not needed. Those that others beat are dropped, the others are trained for longer, calibrated,
    timed, and simulated under your load: each alone, the best backup and the best parity model
    together, and the two best backups. Two are written only if they are better than one by more
    than chance; --explain says so in numbers. The stand-ins with the lowest p99 within --extra-work
    are written. Ctrl-C ends the search early and writes the best so far; --resume continues.
    """
    with progress_bars() as bars:
        found = protect_model(
            deployed_of(model, deployed),
            inputs,
            out=out,
            callbacks=bars,
            began=began(context),
            options=make_options(SearchOptions, given_options(context, "protect"), flag_of),
        )
    for part in found.report.explained if explain else ():
        Console().print(part, soft_wrap=isinstance(part, str))
    found.show()
    write_json(json, found.report.as_json())
