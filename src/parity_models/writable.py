"""Checks that a result can be written, before hours are spent on computing it."""

from pathlib import Path
from tempfile import TemporaryFile


def why_not_writable(folder: Path) -> str | None:
    """Return why no file can be written to `folder`, or None. A missing folder is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"nothing can be written to {folder} ({error.strerror})"
