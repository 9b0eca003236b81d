"""Whether results can be written, before hours are spent on them."""

from pathlib import Path

from parity_models.errors import UserError


def check_file(*paths: Path | None) -> None:
    """Raise UserError unless a result can be written to each of the `paths`.

    Their folders are made; no file is left that was not there.
    """
    for path in paths:
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                new = not path.exists()
                path.open("ab").close()
                if new:
                    path.unlink()
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror}") from error
