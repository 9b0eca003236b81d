"""Whether something can be written, asked before hours are spent on what it is to be."""

from pathlib import Path
from tempfile import TemporaryFile


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be put into `folder`, which is made if need be; None if one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"nothing can be written to {folder} ({error.strerror})"
