"""The files of a bundle's folder: read within bounds and checked, written whole or not at all.

What cannot be read or written is a BundleError that names the file.
"""

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from parity_models.errors import BundleError
from parity_models.models.manifest import StoredFile
from parity_models.models.onnx_model import MAX_MODEL_BYTES

MANIFEST = "manifest.json"


def read_stored(path: Path, named: StoredFile) -> bytes:
    """Return the content of the file at `path`. Raises BundleError unless it is the one that the
    manifest names, of that size and sha256."""
    content = read_file(path, MAX_MODEL_BYTES, named.size)
    if hashlib.sha256(content).hexdigest() != named.sha256:
        raise BundleError(
            f"{path} is damaged or was changed: its sha256 is not the one in {MANIFEST}; "
            "copy the bundle again or make it anew"
        )
    return content


def read_file(path: Path, most: int, size: int | None = None) -> bytes:
    """Return the content of a regular file that does not lie, by links, outside its folder.

    Raises BundleError for any other, for one of another `size`, or of more bytes than `most`, and
    where it cannot be read.
    """
    try:
        if not path.resolve().is_relative_to(path.parent.resolve()):
            raise BundleError(f"{path} links to a file outside the bundle; copy it into the bundle")
        if not path.is_file():
            raise BundleError(f"{path} is missing or not a file; copy the bundle again")
        found = path.stat().st_size
        if size is not None and found != size:
            raise BundleError(
                f"{path} has {found} bytes where {MANIFEST} promises {size}; it is incomplete or "
                "was changed, copy the bundle again"
            )
        if found > most:
            raise BundleError(f"{path} has {found} bytes; {most} are allowed at most")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error


def replace_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Make `folder` hold `contents` and nothing else, written beside it and then renamed.

    `contents` are by file name. Raises BundleError, with the folder as it was, where the
    system does not let it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
        ) as beside:
            new, old = Path(beside, "new"), Path(beside, "old")
            new.mkdir()
            for file, content in contents.items():
                (new / file).write_bytes(content)
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise BundleError(f"cannot write the bundle {folder}: {error.strerror}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Make the file hold `content`, whole or not at all. Raises OSError."""
    beside = path.with_name(f".{path.name}.new")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
