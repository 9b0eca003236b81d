"""A run of `parm protect`, as users have it: a process that is timed."""

import subprocess
import time
from pathlib import Path

import msgspec

from parity_models_lab.parm import parm
from parity_models_lab.protection.results import Found, Search


def search(arguments: tuple[str, ...], minutes: float, folder: Path, seed: int) -> Search:
    """`parm protect` with these arguments besides; the bundle is `folder`/bundle, and what it says
    in `folder`/protect.txt. Why there is none goes to stderr."""
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "found.json"
    report.unlink(missing_ok=True)
    options = ("--minutes", f"{minutes:g}", "--seed", str(seed), "--json", str(report))
    command = parm("protect", *arguments, *options, "--out", str(folder / "bundle"))
    with (folder / "protect.txt").open("w") as said:
        began = time.monotonic()
        subprocess.run(command, stdout=said, check=False)
        took = time.monotonic() - began
    found = msgspec.json.decode(report.read_bytes(), type=Found) if report.exists() else None
    return Search(minutes, took, found)
