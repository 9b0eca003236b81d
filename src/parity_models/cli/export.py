"""parm export: a bundle's models for Triton."""

from pathlib import Path
from typing import Annotated

import click

from parity_models.bundle.bundle import open_bundle
from parity_models.cli.common import AllowCode, BundleFolder
from parity_models.options import Option
from parity_models.serving.remote.export import export_repository


def export(
    bundle: BundleFolder,
    *,
    out: Annotated[Path, Option("The repository, a new folder.", metavar="DIR")],
    allow_code: AllowCode = None,
) -> None:
    """Write a bundle's models as a repository that Triton loads as it is.

    Parity models are called NAME-parity-0 and so on, after the bundle's name. They are then the
    upstreams of `parm serve --deployed URLS --parity URLS`.
    """
    export_repository(open_bundle(bundle, allow_code or ()), out)
    click.echo(f"wrote {out}")
