"""parm export: a bundle's models for another server."""

from pathlib import Path
from typing import Annotated

import typer

from parity_models.cli.code import AllowCode
from parity_models.models.bundle import open_bundle
from parity_models.serving.remote.export import Format, export_repository


def export(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    format: Annotated[Format, typer.Option(help="The server to write for.", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="The repository, a new folder.", metavar="DIR", show_default=False)
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="The deployed model's name; by default the bundle's. Parity models are called "
            "NAME-parity-0 and so on.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        int, typer.Option(help="The version that the models are of there.", min=1, metavar="N")
    ] = 1,
    allow_code: AllowCode = None,
) -> None:
    """Write a bundle's models as a repository that Triton or MLServer loads as it is, to be used
    as upstreams of `parm serve --deployed URLS --parity URLS`."""
    opened = open_bundle(bundle, allow_code or ())
    export_repository(opened, format, out, name, str(version))
    typer.echo(f"wrote {out}")
