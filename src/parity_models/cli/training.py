"""The options that commands which train share."""

from pathlib import Path
from typing import Annotated

import typer

from parity_models.errors import UserError

DeployedFile = Annotated[
    Path | None,
    typer.Option(
        "--model",
        help="The deployed model, an ONNX file. Give --inputs, too.",
        metavar="FILE",
    ),
]
DeployedFolder = Annotated[
    Path | None,
    typer.Option(
        "--from", help="The deployed model, in place of --model: a bundle.", metavar="DIR"
    ),
]
Inputs = Annotated[
    Path | None,
    typer.Option(
        help="Queries to learn from, without labels, instead of a task's: an .npy or .npz file, "
        "or a folder of .npy files and images.",
        metavar="FILE",
    ),
]


def deployed_of(file: Path | None, folder: Path | None) -> Path:
    """Return the deployed model, of which one of the two is given. Raises UserError otherwise."""
    chosen = file or folder
    if chosen is None or (file and folder):
        raise UserError("name the deployed model: either --model FILE or --from DIR")
    return chosen
