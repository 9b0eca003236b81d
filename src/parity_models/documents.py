"""Small documents that people write, such as fault plans, and folders that results go to."""

from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

T = TypeVar("T")

MAX_BYTES = 1 << 20
"""The maximum size of a document."""


def content_of(file: "Traversable") -> bytes:
    """Read a file. Raises OSError, and ValueError for one of more than MAX_BYTES."""
    with file.open("rb") as stream:
        content: bytes = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
    return content


def read_json(content: bytes, kind: type[T]) -> T:
    """Return the struct that a JSON document describes. Raises ValueError that says what is
    wrong."""
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from error
    return as_struct(document, kind)


def as_struct(document: Any, kind: type[T]) -> T:
    """Return the struct of this kind with the plain values of a decoded document.

    Raises ValueError that says what is wrong and where, and the struct's own errors.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        said, _, path = str(error).partition(" - at `$")
        place = path.strip(".`")
        raise ValueError(f"{place}: {said}" if place else said) from error


def why_not_writable(folder: Path) -> str | None:
    """Return why no file can be written to `folder`, or None. A missing folder is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"nothing can be written to {folder} ({error.strerror})"
