"""What a command measured, as a JSON file for machines."""

from pathlib import Path

import msgspec

from parity_models.errors import UserError


def write_json(path: Path, report: object) -> None:
    """Write `report`, anything that msgspec encodes, to `path`; UserError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
