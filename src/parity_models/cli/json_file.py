"""What a command measured, as a JSON file for machines."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from parity_models.errors import UserError

Json = Annotated[
    Path | None, typer.Option(help="Write the numbers to this file, too.", metavar="FILE")
]


def write_json(path: Path | None, report: object) -> None:
    """Write `report`, anything that msgspec encodes, to `path`, if there is one.

    Raises UserError where that fails.
    """
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
