"""How experiments end: their result is kept, and the command fails if what must hold does not."""

from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console

from parity_models.cli.json_file import write_json
from parity_models_lab.cli.report_file import typed_command


def tell_claims(console: Console, result: Any) -> None:
    """Say of each of the result's `claims` whether it holds."""
    for claim in result.claims:
        console.print(f"{'met' if claim.met else 'NOT MET'}: {claim.claim}: {claim.found}")


def keep(file: Path, result: Any) -> None:
    """Write the result, a struct with `command` and `met`, to the file, and conclude."""
    write_json(file, msgspec.structs.replace(result, command=typed_command()))
    conclude(result.met)


def conclude(met: bool) -> None:
    """Exit with 1 if what must hold does not."""
    if not met:
        raise typer.Exit(1)
