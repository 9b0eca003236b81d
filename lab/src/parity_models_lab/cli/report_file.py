"""Reports: whether they can be written, before hours are spent, and the command that they name."""

import os
import shlex
import sys
from pathlib import Path

from parity_models.errors import UserError
from parity_models.writable import why_not_writable


def check_report(out: Path) -> None:
    """Raise UserError unless a report can be written to `out`, and pictures into the folder beside
    it that has its name."""
    pictures = out.with_suffix("")
    if out.is_dir() or not out.suffix:
        raise UserError(f"--out is the report's file, such as report.md, not {out}")
    if why := why_not_writable(out.parent):
        raise UserError(f"--out: {why}; choose another folder")
    if (out.exists() and not os.access(out, os.W_OK)) or pictures.is_file():
        raise UserError(
            f"--out: {out} or the folder {pictures} cannot be written; choose another name"
        )


def typed_command() -> str:
    """What this process was called with, for the report to name."""
    return shlex.join(["parm-lab", *sys.argv[1:]])
