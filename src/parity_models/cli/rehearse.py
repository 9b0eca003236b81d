"""parm rehearse: slow or kill an instance of your own bundle, and see what answers."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import uvloop
from rich import box
from rich.console import Console
from rich.table import Table

from parity_models.cli.common import BundleFolder, Json, write_json
from parity_models.models.bundle import open_bundle
from parity_models.models.queries import padded, read_batch, sizes_in
from parity_models.options import SECONDS, Option
from parity_models.protection.rehearsal import Harm, Rehearsed, Run
from parity_models.protection.rehearsal import rehearse as rehearse_bundle
from parity_models.scheduling import BACKUPS, Source

DRAWN = 64
"""Random queries where none are given."""


def rehearse(
    bundle: BundleFolder,
    *,
    fault: Annotated[
        Harm, Option("The fault of one instance: stopped now and then, killed, or slow.")
    ] = Harm.STOP,
    inputs: Annotated[
        Path | None,
        Option(
            "Queries, an array of rows in .npy. By default random ones, for which a stand-in may "
            "not be confident.",
            metavar="FILE",
        ),
    ] = None,
    instances: Annotated[int, Option("Instances of each run.", at_least=2, at_most=64)] = 4,
    seconds: Annotated[
        float,
        Option(
            "Duration of each of the two runs.", unit=SECONDS, typed="s", at_least=1, at_most=600
        ),
    ] = 4.0,
    json: Json = None,
) -> None:
    """Serve your bundle with a faulty instance, with stand-ins and without, and compare.

    Both runs have the same instances, queries and fault, on this machine; the table is of the time
    of the fault. It takes about ten seconds, and longer where the model takes more than 20 ms: the
    policy has to see some queries first.
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
                fault,
                instances=instances,
                seconds=seconds,
                told=status.update,
            )
        )
    console.print(_table(found, fault))
    typer.echo(_said(found.with_stand_ins, fault, made_up=inputs is None))
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
            "none was late enough; try --fault stop."
        )
    why = "no query was late enough, a copy was as good, or the stand-in was not sure"
    hint = "; give queries like yours with --inputs" if made_up else "; try another --fault"
    return f"The stand-in answered nothing: {why}{hint}."
