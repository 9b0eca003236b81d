"""Where a report is to be written, looked at before hours are spent on what it is to say."""

from pathlib import Path
from tempfile import TemporaryFile

from parity_models.errors import UserError


def check_report(out: Path) -> None:
    """Raise UserError unless a report can be written to `out`, and pictures into the folder beside
    it that has its name."""
    if out.is_dir() or not out.suffix:
        raise UserError(f"--out is the report's file, such as report.md, not {out}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UserError(
            f"--out: nothing can be written to {out.parent} ({error.strerror}); choose another "
            "folder"
        ) from error
