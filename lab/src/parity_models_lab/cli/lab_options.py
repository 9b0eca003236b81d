"""The options that experiments of `parm-lab` share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from parity_models_lab.reliability.servers import Engine

Out = Annotated[
    Path,
    typer.Option(
        help="The folder for results and logs, from which `report` is made.", metavar="DIR"
    ),
]
EngineName = Annotated[
    str, typer.Option("--engine", help="What runs the models.", metavar="[local|remote|ray]")
]
Seed = Annotated[int, typer.Option(help="Fixes the course of events and the load.", min=0)]
Quick = Annotated[bool, typer.Option("--quick", help="Take seconds, not minutes.")]


def engine_of(name: str) -> "Engine":
    """The engine of that name. Raises UserError if there is none."""
    from parity_models.errors import UserError
    from parity_models_lab.reliability.servers import Engine

    if name not in list(Engine):
        raise UserError(f"--engine is {', '.join(Engine)}, not {name!r}")
    return Engine(name)
