"""parm-lab costs: what a request costs with everything on."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from parity_models_lab.cli.judged import keep, tell_claims


def costs(
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Serve this bundle; by default a generated MLP (784-200-100-10) and a parity "
            "model, with random weights.",
            metavar="BUNDLE",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare with these servers, which run the same model already, as of a version "
            "before: one that runs batches of one, then one of up to four. http://HOST:PORT or "
            "http://HOST:PORT/MODEL, separated by commas.",
            metavar="URLS",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="The folder for results, from which `report` is made.", metavar="DIR"),
    ] = Path("runs/reliability"),
) -> None:
    """Measure what a request costs with the default policy.

    Measures requests/s and processor time a request: one client and 16, batches of one and of up to
    four, HTTP layers beside ours, and other servers, all asked in turns. Exits with 1 if a target
    is missed.
    """
    from parity_models.models.bundle import open_bundle
    from parity_models_lab.reliability.costs import run_costs

    opened = None if bundle is None else open_bundle(bundle)
    urls = () if against is None else against.split(",")
    result = asyncio.run(run_costs(opened, urls))
    console = Console(stderr=True, highlight=False)
    for row in (result.columns, *result.rows):
        console.print("  ".join(row))
    tell_claims(console, result)
    keep(out / "costs.json", result)
