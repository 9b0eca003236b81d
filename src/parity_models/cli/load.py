"""parm load: open-loop load on a server, and what its latencies were."""

import asyncio
import signal
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from msgspec import structs
from rich.console import Console
from rich.table import Table

from parity_models.cli.duration import Duration
from parity_models.cli.json_file import write_json
from parity_models.cli.policy import (
    DispatchName,
    PolicyCommand,
    PolicyName,
    choose_policy,
    given_options,
)
from parity_models.errors import UserError
from parity_models.load import Direct, LoadSpec, lasting, offer_load_from_own_process
from parity_models.load.report import (
    LoadReport,
    report_of,
    write_histogram,
    write_latencies,
)
from parity_models.load.rest import find_model
from parity_models.load.result import LoadResult
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.serving.options import ServeOptions
from parity_models.serving.plan import default_policy
from parity_models.tasks import METRICS, TASKS, Task, choose_task, find_task

INTERRUPTED = 130
DURATION = 30.0
DEFAULTS = LoadSpec(data="", rate=1, count=1)


COMMAND = PolicyCommand


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
            "by the options of policies below.",
            metavar="BUNDLE",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model; by default the only one of the server.", metavar="NAME"),
    ] = None,
    binary: Annotated[
        bool, typer.Option("--binary", help="Tensors as binary data; JSON without this.")
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            help=f"Send queries of this task's test set ({', '.join(TASKS)}, or "
            "package.module:Class) and judge the answers; with --bundle, by default the one that "
            "its model was trained on.",
            show_default=False,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="The folder of the task's data.", metavar="DIR")
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="Send the rows of this file: .npy, or .npz with inputs and, maybe, labels.",
            metavar="FILE",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="What is right for --inputs, an .npy file.", metavar="FILE"),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help=f"How labels of --inputs judge answers: {', '.join(METRICS)}.",
            metavar="NAME",
            show_default=DEFAULTS.metric,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Queries (rows) in a request.")] = DEFAULTS.batch,
    rate: Annotated[
        float | None,
        typer.Option(help="Queries per second, Poisson arrivals.", show_default=False),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Send a request at each time in this file: one number of seconds per line, in "
            "order; the first is sent at once.",
            metavar="FILE",
        ),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            help="How many times faster than recorded the --trace is.",
            show_default=f"{DEFAULTS.speed:g}",
        ),
    ] = None,
    queries: Annotated[
        int | None, typer.Option(help="Queries to send and count.", show_default=False)
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(
            help="How long to send, in place of --queries. Without either: "
            f"{DURATION:g} s, or the whole trace.",
            show_default=False,
            parser=Duration("s"),
            metavar="SECONDS",
        ),
    ] = None,
    warmup: Annotated[
        float,
        typer.Option(
            help="Time before that, whose queries are not counted.",
            parser=Duration("s"),
            metavar="SECONDS",
        ),
    ] = 0.0,
    processes: Annotated[
        int, typer.Option(help="Generator processes, which take turns in sending.")
    ] = DEFAULTS.processes,
    connections: Annotated[
        int,
        typer.Option(
            help="Requests under way at most, per process; one that is due beyond that is not "
            "sent and counts as an error."
        ),
    ] = DEFAULTS.max_in_flight,
    timeout: Annotated[
        float,
        typer.Option(
            help="How long until a request fails, from when it was due.",
            parser=Duration("s"),
            metavar="SECONDS",
        ),
    ] = DEFAULTS.timeout,
    seed: Annotated[int, typer.Option(help="Fixes arrivals and queries.")] = DEFAULTS.seed,
    out: Annotated[
        Path | None,
        typer.Option(help="Write settings, summary and histogram as JSON.", metavar="FILE"),
    ] = None,
    latencies: Annotated[
        Path | None,
        typer.Option(help="Write what became of each query as Parquet.", metavar="FILE"),
    ] = None,
    histogram: Annotated[
        Path | None,
        typer.Option(help="Write percentiles for HdrHistogram's plotter.", metavar="FILE"),
    ] = None,
    policy: PolicyName = None,
    dispatch: DispatchName = None,
    instances: Annotated[
        int | None,
        typer.Option(
            help="With --bundle: worker processes for the deployed model.",
            show_default=str(ServeOptions.instances),
        ),
    ] = None,
    parity_instances: Annotated[
        int | None,
        typer.Option(
            help="With --bundle: further worker processes, which all policies but none have.",
            show_default="instances x r / k",
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            help="With --bundle: queries that an instance runs at once.",
            show_default=str(ServeOptions.max_batch),
        ),
    ] = None,
) -> None:
    """Send queries on a schedule, whatever comes back, and measure latency from the schedule.

    Open loop: a server that stalls is charged for every query that was due meanwhile (no
    coordinated omission). Prints percentiles of latency, errors by kind, where answers came from
    and how right they were, and how late the generator itself was. Ctrl-C ends the load and
    prints what there is; a second one ends all.
    """
    serving = {"instances": instances, "parity_instances": parity_instances, "max_batch": max_batch}
    deciding = given_options(context)
    if (url is None) == (bundle is None):
        raise UserError("give the URL of a server, or a bundle with --bundle, and not both")
    opened, direct = None, None
    if bundle is None:
        _refuse(
            "for --bundle; a server has its own",
            policy=policy,
            dispatch=dispatch,
            **serving,
            **deciding,
        )
    else:
        _refuse("for a server; --bundle goes without", model=model, binary=binary or None)
        opened = open_bundle(bundle)
        options: dict[str, Any] = {k: v for k, v in serving.items() if v is not None}
        choice = choose_policy(policy or default_policy(opened), deciding, dispatch)
        direct = Direct(str(bundle), ServeOptions(policy=choice, port=0, **options))
    if inputs is None:
        _refuse("for --inputs; a task has its own", labels=labels, metric=metric)
    else:
        _refuse("of no use with --inputs; give one of the two", task=task, data_dir=data_dir)
    if trace is None:
        _refuse("for --trace; change the --rate", speed=speed)
    if queries is not None and duration is not None:
        raise UserError("give --queries or --duration, not both")
    if queries is None and duration is None:
        duration = DURATION if trace is None else inf
    asked = LoadSpec(
        url=url or "",
        direct=direct,
        model=model or "",
        binary=binary,
        data=str(inputs or ""),
        labels=None if labels is None else str(labels),
        metric=DEFAULTS.metric if metric is None else metric,
        batch=batch,
        rate=rate,
        trace=None if trace is None else str(trace),
        speed=DEFAULTS.speed if speed is None else speed,
        count=1 if queries is None else queries,
        seed=seed,
        timeout=timeout,
        max_in_flight=connections,
        processes=processes,
    )
    asked = lasting(asked, warmup, duration)
    for path in (out, latencies, histogram):
        _check_writable(path)
    if url is not None and model is None:
        asked = structs.replace(asked, model=asyncio.run(find_model(url)))
    with TemporaryDirectory(prefix="parm-load-") as folder:
        if inputs is None:
            chosen = _task(task, opened)
            offered = _with_test_set(asked, chosen, data_dir, Path(folder, "queries.npz"))
            asked = structs.replace(
                asked, data=f"the test set of {chosen.name}", metric=chosen.metric
            )
        else:
            offered = asked
        result, interrupted = _offer(offered)
    report = report_of(asked, result)
    _print(report, Console())
    if out is not None:
        write_json(out, report)
    if latencies is not None:
        write_latencies(latencies, result)
    if histogram is not None:
        write_histogram(histogram, result)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if report.answered == 0:
        raise typer.Exit(1)


def _refuse(why: str, **options: object) -> None:
    """Raises UserError if one of the options is given."""
    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name.replace('_', '-')} is {why}")


def _check_writable(path: Path | None) -> None:
    """Before the load, so that no result is lost after it."""
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error


def _task(name: str | None, bundle: Bundle | None) -> Task:
    """The task called `name`, or else the one that the bundle's model was trained on."""
    if name is not None:
        return choose_task(name)
    if bundle is None or bundle.manifest.deployed_training is None:
        raise UserError("say which queries to send: a task's with --task, or a file with --inputs")
    return find_task(bundle.manifest.deployed_training.task)


def _with_test_set(spec: LoadSpec, task: Task, data_dir: Path | None, path: Path) -> LoadSpec:
    """`spec` with the queries of the task, which go into the file `path`."""
    test = task.load(data_dir).test
    np.savez(path, inputs=test.inputs, labels=test.labels)
    return structs.replace(spec, data=str(path), metric=task.metric)


def _offer(spec: LoadSpec) -> tuple[LoadResult, bool]:
    """The result, and whether a signal cut it short. A second signal ends all."""
    try:
        return asyncio.run(_offer_until_signal(spec))
    except asyncio.CancelledError:
        raise typer.Exit(INTERRUPTED) from None


async def _offer_until_signal(spec: LoadSpec) -> tuple[LoadResult, bool]:
    stop = asyncio.Event()
    this = asyncio.current_task()
    assert this is not None

    def on_signal() -> None:
        if stop.is_set():
            this.cancel()
        stop.set()

    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, on_signal)
    result = await offer_load_from_own_process(spec, lambda: None, stop=stop)
    return result, stop.is_set()


def _print(report: LoadReport, console: Console) -> None:
    spec = report.load
    when = f"Poisson, {spec.rate:g}/s" if spec.trace is None else f"trace {spec.trace}"
    console.print(
        f"{report.queries:,} of {spec.count:,} queries ({when}; {report.offered:.1f}/s were due), "
        f"{report.answered:,} answered, {report.throughput:.1f}/s.",
        highlight=False,
    )
    if report.latency is not None:
        table = Table(title="Latency in ms, from the scheduled send", title_justify="left")
        numbers = structs.asdict(report.latency)
        for name in ("p50", "p90", "p99", "p99.5", "p99.9", "max", "p99.9 - p50"):
            table.add_column(name, justify="right")
        table.add_row(*(f"{ms:.2f}" for ms in numbers.values()))
        console.print(table)
    table = Table()
    for name in ("source or error", "queries", "share", "accuracy"):
        table.add_column(name, justify="left" if name == "source or error" else "right")
    for source, answers in report.sources.items():
        table.add_row(*_row(source, answers.count, report), _percent(answers.accuracy))
    for kind, count in report.errors.items():
        table.add_row(*_row(kind, count, report), "", style="red")
    table.add_section()
    table.add_row(*_row("answered", report.answered, report), _percent(report.accuracy))
    console.print(table)
    late = report.send_delay
    if late is not None:
        console.print(
            f"The generator sent p50 {late.p50_ms:.2f}, p99 {late.p99_ms:.2f}, max "
            f"{late.max_ms:.2f} ms later than scheduled.",
            highlight=False,
        )
        if not late.precise:
            typer.echo(
                "warning: the generator itself was late by more than 1 ms at p99; latencies hold "
                "that. Use more --processes, --binary, a lower rate or a machine of its own",
                err=True,
            )


def _row(name: str, count: int, report: LoadReport) -> tuple[str, str, str]:
    return name, f"{count:,}", f"{count / max(1, report.queries):.2%}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"
