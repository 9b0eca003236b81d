"""Files that are read again when they change."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from parity_models.errors import UserError

INTERVAL = 1.0
"""Seconds between two looks at the files."""

_log = logging.getLogger(__name__)


class Reread(Protocol):
    """What was read from files, and can be again."""

    files: "WatchedFiles"

    def read(self) -> None:
        """Read the files. Raises UserError, and leaves all as it was, where they are wrong."""


class WatchedFiles:
    """Some files, and whether they have changed since the last look."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths
        self.trouble = ""
        """Why they could not be read; empty if they could be."""
        self._seen = self._stamps()

    def changed(self) -> bool:
        """Has one been written, replaced or removed since this was asked last?"""
        before, self._seen = self._seen, self._stamps()
        return self._seen != before

    def _stamps(self) -> Sequence[object]:
        return [_stamp(path) for path in self.paths]


def _stamp(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def read_text(path: Path, what: str) -> str:
    """The text of a file, which is `what`. Raises UserError if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"{what}, {path}, cannot be read: {why}") from error


def refresh(watched: Reread) -> None:
    """Read its files again if they have changed, or could not be read; what is wrong with them is
    logged, once, and what was read before holds on."""
    files = watched.files
    if not files.changed() and not files.trouble:
        return
    names = " and ".join(map(str, files.paths))
    try:
        watched.read()
    except Exception as error:  # such as a file that was removed while it was read
        if (trouble := str(error) or repr(error)) != files.trouble:
            _log.error("what was read from %s before stays in force: %s", names, trouble)
        # It may be well the next time, though no file changes: the server may lack descriptors.
        files.trouble = trouble
    else:
        files.trouble = ""
        _log.info("%s changed and was read again", names)


async def watch(*all_watched: Reread) -> None:
    """Look after them until cancelled."""
    while True:
        await asyncio.sleep(INTERVAL)
        for each in all_watched:
            refresh(each)
