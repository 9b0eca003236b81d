"""parm load: open-loop load on a server, and its latencies."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from parity_models.cli.common import Json, check_file, on_signals, write_json
from parity_models.cli.flags import Only, argument
from parity_models.cli.load_report import print_report
from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.report import report_of, write_latencies
from parity_models.load.result import LoadResult
from parity_models.options import Option
from parity_models.serving.client import TOKEN, Credentials

INTERRUPTED = 130

Load = Annotated[
    LoadSpec,
    Only(
        "model",
        "binary",
        "inputs",
        "labels",
        "batch",
        "rate",
        "trace",
        "queries",
        "duration",
        "processes",
    ),
]


def load(
    url: Annotated[
        str, argument("A server of the Open Inference Protocol, as http://127.0.0.1:8000.", "URL")
    ],
    *,
    options: Load,
    json: Json = None,
    latencies: Annotated[
        Path | None, Option("Write the fate of each query to this CSV file.", metavar="FILE")
    ] = None,
    ca_file: Annotated[
        Path | None,
        Option(
            "The certificates to trust over https, a PEM file; by default the system's.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Send queries on a fixed schedule, and measure latency from the schedule.

    Open loop: a server that stalls is charged for every query that was due meanwhile (no
    coordinated omission). Prints percentiles of latency, errors by kind, the sources of answers
    and their accuracy, and how late the generator itself was. The variable PARM_TOKEN has the
    bearer token for a server that asks for one. Ctrl-C ends the load and prints the results so far;
    a second one ends at once.
    """
    credentials = Credentials(os.environ.get(TOKEN), ca_file)
    spec = replace(options, url=url)
    check_file(json, latencies)
    stop = asyncio.Event()
    try:
        result = asyncio.run(_offer_until_signal(spec, stop, credentials))
    except asyncio.CancelledError:
        raise typer.Exit(INTERRUPTED) from None
    report = report_of(spec, result)
    print_report(report)
    write_json(json, report)
    if latencies is not None:
        write_latencies(latencies, result)
    if stop.is_set() or report.answered == 0:
        raise typer.Exit(INTERRUPTED if stop.is_set() else 1)


async def _offer_until_signal(
    spec: LoadSpec, stop: asyncio.Event, credentials: Credentials
) -> LoadResult:
    """Offer the load. A signal sets `stop`, which ends it; a second one ends everything."""
    this = asyncio.current_task()
    assert this is not None

    def on_signal() -> None:
        if stop.is_set():
            this.cancel()
        stop.set()

    with on_signals(on_signal):
        return await offer_load_from_own_process(spec, stop=stop, credentials=credentials)
