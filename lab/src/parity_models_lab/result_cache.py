"""Results on disk, by content: what has been run is not run again."""

from pathlib import Path
from typing import TypeVar

import msgspec

from parity_models.errors import UserError

Result = TypeVar("Result")


class ResultCache:
    """A folder of results, one JSON file each, named by what determines it.

    A damaged file counts as missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error

    def get(self, key: str, kind: type[Result]) -> Result | None:
        try:
            return msgspec.json.decode((self._folder / f"{key}.json").read_bytes(), type=kind)
        except (OSError, ValueError):
            return None

    def put(self, key: str, result: object) -> None:
        file = self._folder / f"{key}.json"
        unfinished = file.with_suffix(".part")
        unfinished.write_bytes(msgspec.json.encode(result))
        unfinished.replace(file)
