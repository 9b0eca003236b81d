"""parm load: open-loop load on a server, and what its latencies were."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from parity_models.cli.code import AllowCode
from parity_models.cli.credentials import Token
from parity_models.cli.extensions import (
    Declared,
    command_for,
    flag_of,
    given_options,
    spelling_in,
)
from parity_models.cli.json_file import write_json
from parity_models.cli.load_report import print_report
from parity_models.cli.policy import KINDS, DispatchName, PolicyName
from parity_models.cli.report_file import check_file
from parity_models.cli.serving import (
    DefaultPrediction,
    EngineName,
    chosen_engine,
    options_of_server,
)
from parity_models.cli.signals import on_signals
from parity_models.errors import UserError
from parity_models.load import Direct
from parity_models.load.credentials import Credentials
from parity_models.load.options import LoadOptions
from parity_models.load.plan import LoadPlan, plan_load
from parity_models.load.report import report_of, write_histogram
from parity_models.load.result import LoadResult
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.options import make_options
from parity_models.serving.engines import ENGINES
from parity_models.serving.options import ServeOptions

INTERRUPTED = 130

IN_PROCESS = (
    "instances",
    "parity_instances",
    "max_batch",
    "max_queue",
    "deadline",
    "verify_every",
    "agreement",
)
"""The options of a server that say something where there are no sockets."""

COMMAND = command_for(
    load=Declared(LoadOptions),
    serve=Declared(ServeOptions, IN_PROCESS, "With --bundle: "),
    engine=ENGINES,
    **KINDS,
)

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
        str | None,
        typer.Argument(
            help="A server of the Open Inference Protocol, as http://127.0.0.1:8000.",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="In place of a URL: serve this bundle in the generator's process, without HTTP, "
            "by the options of engines and policies below.",
            metavar="BUNDLE",
        ),
    ] = None,
    out: Out = None,
    latencies: Latencies = None,
    histogram: Histogram = None,
    token: Token = None,
    engine: EngineName = None,
    policy: PolicyName = None,
    dispatch: DispatchName = None,
    default_prediction: DefaultPrediction = None,
    allow_code: AllowCode = None,
) -> None:
    """Send queries on a schedule, whatever comes back, and measure latency from the schedule.

    Open loop: a server that stalls is charged for every query that was due meanwhile (no
    coordinated omission). Prints percentiles of latency, errors by kind, where answers came from
    and how right they were, and how late the generator itself was. Ctrl-C ends the load and
    prints what there is; a second one ends all.
    """
    serving = {
        "engine": engine,
        "policy": policy,
        "dispatch": dispatch,
        "default_prediction": default_prediction,
    }
    plan = _plan(context, url, bundle, token, allow_code, serving)
    check_file(out, latencies, histogram)
    write_table = _writer_of_tables() if latencies else None
    result, interrupted = _offer(plan)
    report = report_of(plan.spec, result)
    print_report(report)
    write_json(out, report)
    if latencies and write_table:
        write_table(latencies, result)
    if histogram is not None:
        write_histogram(histogram, result)
    if interrupted or report.answered == 0:
        raise typer.Exit(INTERRUPTED if interrupted else 1)


def _writer_of_tables() -> Callable[[Path, LoadResult], None]:
    # Only now: whoever wants no table need not wait for Arrow.
    from parity_models.load.latency_table import write_latencies

    return write_latencies


def _plan(
    context: typer.Context,
    url: str | None,
    bundle: Path | None,
    token: str | None,
    allow_code: list[str] | None,
    serving: Mapping[str, str | None],
) -> LoadPlan:
    """The load that the command line asks for. Raises UserError where it contradicts itself."""
    if (url is None) == (bundle is None):
        raise UserError("give the URL of a server, or a bundle with --bundle, and not both")
    given = given_options(context, "load")
    _refuse_contradictions(given)
    options = make_options(LoadOptions, given, flag_of)
    if bundle is None:
        for_bundles = {**serving, "allow_code": allow_code}
        named = [name for name, value in for_bundles.items() if value is not None]
        others = given_options(context, "serve", "engine", *KINDS)
        ca_file = others.pop("ca_file", None)
        _refuse((*named, *others), "for --bundle; a server has its own")
        credentials = Credentials(token, None if ca_file is None else Path(ca_file))
        return asyncio.run(plan_load(options, url=url, credentials=credentials))
    if token is not None and spelling_in(context)("token") == flag_of("token"):
        _refuse(["token"], "for a server; --bundle goes without")
    _refuse(given.keys() & {"model", "binary"}, "for a server; --bundle goes without")
    opened = open_bundle(bundle, allow_code or ())
    training = opened.manifest.deployed_training
    return asyncio.run(
        plan_load(
            options,
            direct=_direct(context, opened, allow_code, **serving),
            trained_on=None if training is None else training.task,
        )
    )


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


def _direct(
    context: typer.Context,
    bundle: Bundle,
    allow_code: list[str] | None,
    *,
    engine: str | None,
    **serving: str | None,
) -> Direct:
    """The bundle, as the command line says that this process is to serve it."""
    chosen = chosen_engine(context, engine)
    options = options_of_server(context, bundle, engine=chosen, port=0, **serving)
    return Direct(str(bundle.path), options, tuple(allow_code or ()))


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
