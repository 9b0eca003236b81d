"""parm load: open-loop load on a server, and its latencies."""

import asyncio
import sys
import time
from dataclasses import replace
from typing import Annotated

import click
import numpy as np
from msgspec import structs
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from parity_models.cli.common import Json, check_file, stop_on_signals, write_json
from parity_models.cli.flags import Without
from parity_models.load import LoadSpec, offer_load
from parity_models.load.generator import run_precisely
from parity_models.load.result import LoadReport, LoadResult, report_of
from parity_models.options import Option
from parity_models.progress import EVERY, Progress
from parity_models.serving.client import Credentials

INTERRUPTED = 130

PRECISE_MS = 1.0
"""A generator is precise if it sends 99 % of its queries less late than this."""


def load(
    url: Annotated[
        str,
        Option("A server of the Open Inference Protocol, as http://127.0.0.1:8000.", argument=True),
    ],
    *,
    options: Annotated[LoadSpec, Without("warm_up", "connections", "timeout", "seed")],
    json: Json = None,
) -> None:
    """Send queries on a fixed schedule, and measure latency from the schedule.

    Open loop: a server that stalls is charged for every query that was due meanwhile (no
    coordinated omission). Prints percentiles of latency, errors by kind, the sources of answers
    and their accuracy, and how late the generator itself was. If the server asks for a bearer
    token, set PARM_TOKEN; PARM_CA_FILE names a PEM file of certificates to trust in place of the
    system's. Ctrl-C ends the load and prints the results so far; a second one ends at once.
    """
    Credentials.of_environment()  # refuses wrong ones before anything is sent
    spec = replace(options, url=url)
    check_file(json)
    try:
        result, stopped = run_precisely(_offer_until_signal(spec))
    except asyncio.CancelledError:
        raise click.exceptions.Exit(INTERRUPTED) from None
    report = report_of(spec, result)
    _print_report(report)
    write_json(json, report)
    if stopped or report.answered == 0:
        raise click.exceptions.Exit(INTERRUPTED if stopped else 1)


async def _offer_until_signal(spec: LoadSpec) -> tuple[LoadResult, bool]:
    """Offer the load until a signal stops it. Return the result, and whether it was stopped."""
    with stop_on_signals() as stop:
        showing = asyncio.create_task(_show_progress(spec.due, spec.batch))
        try:
            return await offer_load(spec, stop=stop), stop.is_set()
        finally:
            showing.cancel()


async def _show_progress(due: NDArray[np.float64], batch: int) -> None:
    """Write how far the load is, on a terminal every second. Bars take the time of requests."""
    began, live = time.monotonic(), sys.stderr.isatty()
    try:
        while True:
            await asyncio.sleep(1.0 if live else EVERY)
            sent = int(np.searchsorted(due, time.monotonic() - began))
            said = f"{Progress('queries', sent * batch, len(due) * batch)}"
            click.echo(f"\r{said}" if live else said, err=True, nl=not live)
    finally:
        if live:
            click.echo("\r\x1b[K", err=True, nl=False)


def _print_report(report: LoadReport) -> None:
    """Print a report, and to standard error a warning if the generator itself was late."""
    console, spec = Console(highlight=False), report.load
    when = f"Poisson, {spec.rate:g}/s" if spec.trace is None else f"trace {spec.trace}"
    console.print(
        f"{report.queries:,} of {report.planned:,} queries ({when}; {report.offered:.1f}/s in "
        f"this run), {report.answered:,} answered, {report.throughput:.1f}/s.",
    )
    if report.latency is not None:
        table = Table(title="Latency in ms, from the scheduled send", title_justify="left")
        for name in ("p50", "p90", "p99", "p99.5", "p99.9", "max", "p99.9 - p50"):
            table.add_column(name, justify="right")
        table.add_row(*(f"{ms:.2f}" for ms in structs.asdict(report.latency).values()))
        console.print(table)
    table = Table("source or error")
    for name in ("queries", "share", "accuracy"):
        table.add_column(name, justify="right")
    rows = [(source, each.count, each.accuracy) for source, each in report.sources.items()]
    rows += [(kind, count, None) for kind, count in report.errors.items()]
    for name, count, accuracy in [*rows, ("answered", report.answered, report.accuracy)]:
        share = f"{count / max(1, report.queries):.2%}"
        right = "" if accuracy is None else f"{accuracy:.2%}"
        if name == "answered":
            table.add_section()
        style = "red" if name in report.errors else ""
        table.add_row(name, f"{count:,}", share, right, style=style)
    console.print(table)
    late = report.send_delay
    if late is None:
        return
    console.print(
        f"The generator sent p50 {late.p50_ms:.2f}, p99 {late.p99_ms:.2f}, max "
        f"{late.max_ms:.2f} ms later than scheduled.",
    )
    if late.p99_ms > PRECISE_MS:
        click.echo(
            "warning: the generator itself was late by more than 1 ms at p99, which the latencies "
            "include. Use --binary, a lower rate, a machine of its own or more than one parm load",
            err=True,
        )
