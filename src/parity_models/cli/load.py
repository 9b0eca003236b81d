"""parm load: open-loop load on a server, and what its latencies were."""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from parity_models.cli.credentials import CaFile, Token
from parity_models.cli.extensions import Declared, command_for, flag_of, given_options
from parity_models.cli.json_file import write_json
from parity_models.cli.load_report import print_report
from parity_models.cli.report_file import check_file
from parity_models.cli.signals import on_signals
from parity_models.errors import UserError
from parity_models.load.options import LoadOptions, LoadPlan, plan_load
from parity_models.load.report import report_of, write_histogram, write_latencies
from parity_models.load.result import LoadResult
from parity_models.options import make_options
from parity_models.serving.client import Credentials

INTERRUPTED = 130

COMMAND = command_for(load=Declared(LoadOptions))

Out = Annotated[
    Path | None,
    typer.Option(help="Write settings, summary and histogram as JSON.", metavar="FILE"),
]
Latencies = Annotated[
    Path | None,
    typer.Option(help="Write what became of each query as Parquet.", metavar="FILE"),
]
Histogram = Annotated[
    Path | None,
    typer.Option(help="Write percentiles for HdrHistogram's plotter.", metavar="FILE"),
]


def load(
    context: typer.Context,
    url: Annotated[
        str,
        typer.Argument(
            help="A server of the Open Inference Protocol, as http://127.0.0.1:8000.",
            metavar="URL",
            show_default=False,
        ),
    ],
    out: Out = None,
    latencies: Latencies = None,
    histogram: Histogram = None,
    token: Token = None,
    ca_file: CaFile = None,
) -> None:
    """Send queries on a schedule, whatever comes back, and measure latency from the schedule.

    Open loop: a server that stalls is charged for every query that was due meanwhile (no
    coordinated omission). Prints percentiles of latency, errors by kind, where answers came from
    and how right they were, and how late the generator itself was. Ctrl-C ends the load and
    prints what there is; a second one ends all.
    """
    given = given_options(context, "load")
    _refuse_contradictions(given)
    options = make_options(LoadOptions, given, flag_of)
    plan = asyncio.run(plan_load(options, url=url, credentials=Credentials(token, ca_file)))
    check_file(out, latencies, histogram)
    result, interrupted = _offer(plan)
    report = report_of(plan.spec, result)
    print_report(report)
    write_json(out, report)
    if latencies is not None:
        write_latencies(latencies, result)
    if histogram is not None:
        write_histogram(histogram, result)
    if interrupted or report.answered == 0:
        raise typer.Exit(INTERRUPTED if interrupted else 1)


def _refuse_contradictions(given: Mapping[str, Any]) -> None:
    if "inputs" in given:
        why = "of no use with --inputs; give one of the two"
        _refuse(given.keys() & {"task", "data_dir"}, why)
    else:
        _refuse(given.keys() & {"labels", "metric"}, "for --inputs; a task has its own")
    if "trace" not in given:
        _refuse(given.keys() & {"speed"}, "for --trace; change the --rate")


def _refuse(options: Iterable[str], why: str) -> None:
    """Raises UserError for the first of the options, if there are any."""
    for name in options:
        raise UserError(f"{flag_of(name)} is {why}")


def _offer(plan: LoadPlan) -> tuple[LoadResult, bool]:
    """The result, and whether a signal cut it short. A second signal ends all."""
    try:
        return asyncio.run(_offer_until_signal(plan))
    except asyncio.CancelledError:
        raise typer.Exit(INTERRUPTED) from None


async def _offer_until_signal(plan: LoadPlan) -> tuple[LoadResult, bool]:
    stop = asyncio.Event()
    this = asyncio.current_task()
    assert this is not None

    def on_signal() -> None:
        if stop.is_set():
            this.cancel()
        stop.set()

    with on_signals(on_signal):
        result = await plan.offer(stop, lambda: None)
    return result, stop.is_set()
