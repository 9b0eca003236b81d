"""parm lab: experiments that prove what is claimed of the server."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

lab = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Prove the claims: chaos, overload, attacks, soaks.",
)

Out = Annotated[
    Path, typer.Option(help="The folder for results and logs, from which `report` is made.")
]
Seed = Annotated[int, typer.Option(help="Fixes the course of events and the load.", min=0)]
Quick = Annotated[bool, typer.Option("--quick", help="Take seconds, not minutes.")]


@lab.callback()
def _lab() -> None:
    """Prove the claims: chaos, overload, attacks, soaks."""


def command() -> str:
    """What this process was called with, to be shown in a report."""
    return shlex.join(["parm", *sys.argv[1:]])


def conclude(met: bool) -> None:
    """Exit with 1 if what must hold does not."""
    if not met:
        raise typer.Exit(1)


@lab.command()
def chaos(
    engine: Annotated[str, typer.Option(help="local, remote or ray.")] = "local",
    minutes: Annotated[float, typer.Option(help="About how long.", min=0.01)] = 5.0,
    seed: Seed = 0,
    rate: Annotated[float, typer.Option(help="Requests a second, of 2.8 queries.", min=1)] = 70.0,
    out: Out = Path("runs/reliability"),
    events: Annotated[
        str | None,
        typer.Option(help="Only these, separated by commas; docs/reliability.md lists them."),
    ] = None,
    quick: Quick = False,
) -> None:
    """Serve under load and faults for a while; account for every query.

    A server process of its own, clients over HTTP and gRPC, and a course of kills, pauses, lies,
    rude clients and absurd inputs, drawn from the seed. Exits with 1 if a query did not get one
    right answer or one clear error.
    """
    import asyncio

    import msgspec

    from parity_models.bench.reliability.chaos import run_chaos
    from parity_models.bench.reliability.servers import Engine
    from parity_models.cli.json_file import write_json
    from parity_models.errors import UserError

    if engine not in list(Engine):
        raise UserError(f"--engine is {', '.join(Engine)}, not {engine!r}")
    console = Console(stderr=True, highlight=False)
    folder = out / f"chaos-{engine}"
    result = asyncio.run(
        run_chaos(
            Engine(engine),
            minutes=minutes,
            seed=seed,
            rate=rate,
            folder=folder,
            events=events.split(",") if events else (),
            quick=quick,
            say=console.print,
        )
    )
    result = msgspec.structs.replace(result, command=command())
    write_json(out / f"chaos-{engine}.json", result)
    for claim in result.claims:
        console.print(f"{'met' if claim.met else 'NOT MET'}: {claim.claim}: {claim.found}")
    if not result.met:
        console.print(f"seed {seed}; first failure: {next(iter(result.failures), 'none noted')}")
    conclude(result.met)
