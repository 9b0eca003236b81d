"""The options that measurements share."""

from pathlib import Path
from typing import Annotated

import typer

BundleOrMlp = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        help="Serve this bundle; by default a generated MLP (784-200-100-10) with random weights.",
        metavar="BUNDLE",
    ),
]
