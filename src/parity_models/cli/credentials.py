"""The options of commands that ask a server which wants to know who asks."""

from pathlib import Path
from typing import Annotated

import typer

from parity_models.serving.client import TOKEN

Token = Annotated[
    str | None,
    typer.Option(
        envvar=TOKEN,
        help="The bearer token to show; others on this machine cannot read it from the variable.",
        metavar="TOKEN",
    ),
]

CaFile = Annotated[
    Path | None,
    typer.Option(
        help="The certificates to trust over https, a PEM file; by default the system's.",
        metavar="FILE",
    ),
]
