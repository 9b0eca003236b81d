"""parm rehearse: harm an instance of your own bundle, and see who answers."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import uvloop
from rich import box
from rich.console import Console
from rich.table import Table

from parity_models.cli.duration import duration
from parity_models.cli.json_file import Json, write_json
from parity_models.models.bundle import open_bundle
from parity_models.models.queries import padded, read_batch, sizes_in
from parity_models.protection.rehearsal import Harm, Rehearsed, Run
from parity_models.protection.rehearsal import rehearse as rehearse_bundle
from parity_models.scheduling import BACKUPS, Source

DRAWN = 64
"""Queries that are made up where none are given."""

Break = Annotated[
    Harm,
    typer.Option(
        "--break",
        help="What is done to one instance: stop it now and then, kill it, or slow it down.",
    ),
]


def rehearse(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    harm: Break = Harm.STOP,
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="Queries, an array of rows in .npy. By default made-up ones, which a stand-in "
            "may not be sure of.",
            metavar="FILE",
        ),
    ] = None,
    instances: Annotated[
        int, typer.Option(help="Instances of each run.", min=2, max=64, metavar="N")
    ] = 4,
    seconds: Annotated[
        float,
        duration("How long each of the two runs takes.", "s", at_least=1, at_most=600),
    ] = 4.0,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Queries per second. By default three tenths of what they carry.",
            min=0.1,
            metavar="NUMBER",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Serve your bundle, harm one instance, and see who answers, with stand-ins and without.

    Both runs have the same instances, queries and harm, on this machine; what is shown is of the
    time while there is harm. It takes about ten seconds, and longer where the model takes more than
    20 ms: the policy has to see some queries first.
    """
    opened = open_bundle(bundle)
    signature = opened.manifest.deployed.signature
    if inputs is not None:
        batch = read_batch(inputs, signature)
        sizes = sizes_in(batch, signature.inputs)
        rows = padded(batch, signature, [int(sizes[axis].max()) for axis in signature.axes])
    else:
        queries = signature.largest.input
        rows = queries.join(queries.draw(np.random.default_rng(0), DRAWN))
    console = Console()
    with console.status("measuring the model") as status:
        found = uvloop.run(
            rehearse_bundle(
                opened,
                rows,
                harm,
                instances=instances,
                seconds=seconds,
                rate=rate,
                told=status.update,
            )
        )
    console.print(_table(found, harm))
    typer.echo(_said(found.with_stand_ins, harm, made_up=inputs is None))
    if json is not None:
        write_json(json, found)


def _table(found: Rehearsed, harm: Harm) -> Table:
    done = {Harm.KILL: "killed", Harm.STOP: "stopped now and then", Harm.SLOW: "slow"}[harm]
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        title=f"one instance is {done}; a query takes {found.usual_ms:.1f} ms, "
        f"{found.rate:.0f} are asked a second",
        title_justify="left",
        caption="times in ms",
        caption_justify="right",
    )
    table.add_column("policy", overflow="fold")
    runs = (found.without, found.with_stand_ins)
    further = [source for source in BACKUPS[1:] if any(run.sources.get(source) for run in runs)]
    sources = [source for source in Source if source not in BACKUPS[1:] or source in further]
    for heading in ("p50", "p99", "longest", *map(str, sources), "failed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        table.add_row(
            run.policy,
            *(f"{ms:.1f}" for ms in (run.p50_ms, run.p99_ms, run.longest_ms)),
            *(f"{run.sources.get(source, 0):,}" for source in sources),
            f"{run.failed:,}",
        )
    return table


def _said(run: Run, harm: Harm, *, made_up: bool) -> str:
    stood_in = sum(run.sources.get(each, 0) for each in Source if each.stands_in)
    if stood_in:
        return f"{stood_in:,} of {run.answers:,} answers were a stand-in's."
    if harm is Harm.KILL:
        return (
            "The stand-in answered nothing: a query whose instance dies is run again at once, and "
            "none was late enough; try --break stop."
        )
    why = "no query was late enough, a copy was as good, or the stand-in was not sure"
    hint = "; give queries like yours with --inputs" if made_up else "; try another --break"
    return f"The stand-in answered nothing: {why}{hint}."
