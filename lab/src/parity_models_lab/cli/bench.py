"""parm-lab bench: what the parts of coded serving cost."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from parity_models.cli.duration import duration
from parity_models.cli.extensions import naming
from parity_models.cli.json_file import Json, write_json
from parity_models.errors import UserError
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.scheduling.policies import POLICIES, NoRedundancy
from parity_models.serving.engines import EngineChoice
from parity_models.serving.remote.remote_engine import RemoteEngine
from parity_models_lab.cli.bench_options import BundleOrMlp
from parity_models_lab.cli.bench_start import start
from parity_models_lab.costs.encode import measure_encode
from parity_models_lab.costs.live_page import (
    UNWATCHED_AT_MOST,
    WATCHED_AT_MOST,
    WATCHERS,
    measure_page,
)
from parity_models_lab.costs.overhead import ROUNDS, OverheadReport, measure_overhead
from parity_models_lab.costs.ray_clients import Effort
from parity_models_lab.costs.throughput import SECONDS, Throughput

bench = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure what the parts of coded serving cost.",
)
bench.command()(start)

PolicyName = Annotated[
    str,
    typer.Option(
        "--policy",
        help="What the server sends besides the originals.",
        metavar="POLICY",
        callback=naming(POLICIES),
    ),
]
Instances = Annotated[int, typer.Option(help="Instances of the deployed model.", min=1)]
Quick = Annotated[bool, typer.Option("--quick", help="Measure briefly; the numbers are rougher.")]


@bench.command()
def overhead(
    json: Json = None,
    bundle: BundleOrMlp = None,
    deployed: Annotated[
        str | None,
        typer.Option(
            help="Measure in front of these servers, which run the models of --bundle (URLS as in "
            "`parm serve`), beside requests straight to the first of them.",
            metavar="URLS",
        ),
    ] = None,
    parity: Annotated[
        str | None,
        typer.Option(help="Likewise, those that run its parity model.", metavar="URLS"),
    ] = None,
    policy: PolicyName = NoRedundancy.name,
    instances: Instances = 1,
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare throughput and processor time with these servers, which run the same "
            "model already: http://HOST:PORT or http://HOST:PORT/MODEL, separated by commas.",
            metavar="URLS",
        ),
    ] = None,
    quick: Quick = False,
) -> None:
    """Compare a request over HTTP with a call to ONNX Runtime.

    The call is of the same model, in process. One client sends one row at a time, as a binary
    tensor, over a bare socket that is kept open; the server has --instances, or those of
    --deployed. Rounds of both take turns. Prints p50 and p99 of both, and their difference and
    ratio at p50; then requests/s and processor time per request (all the server's processes) of one
    client and of 16, beside other servers.
    """
    opened = None if bundle is None else open_bundle(bundle)
    report = asyncio.run(
        measure_overhead(
            opened,
            _engine(opened, deployed, parity),
            policy,
            instances=instances,
            against=() if against is None else against.split(","),
            rounds=3 if quick else ROUNDS,
            seconds=0.1 if quick else SECONDS,
        )
    )
    _print_overhead(report)
    write_json(json, report)


def _print_overhead(report: OverheadReport) -> None:
    table = Table()
    for column in ("", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right" if column else "left")
    ways = ("in process", "over HTTP")
    if report.upstream is not None:
        ways = (f"straight to {report.upstream}", "through parm serve")
    for way, latency in zip(ways, (report.direct, report.served), strict=True):
        table.add_row(way, f"{latency.p50_ms:.3f}", f"{latency.p99_ms:.3f}")
    table.add_section()
    table.add_row("difference at p50", f"{report.difference_p50_ms:.3f}")
    table.add_row("ratio at p50", f"{report.ratio_p50:.1f}x")
    console = Console(highlight=False)
    console.print(
        f"One row of {report.tensor_bytes:,} bytes through the network {report.model}, "
        f"{report.calls:,} calls each way; client: {report.client}; policy: {report.policy}.",
    )
    console.print(table)
    this = report.throughput[0].url
    names = ["parm serve" if each.url == this else each.url for each in report.throughput]
    console.print(_throughput(names, report.throughput))


def _throughput(names: Sequence[str], throughput: Sequence[Throughput]) -> Table:
    table = Table()
    for column in ("server", "clients", "requests/s", "p50 ms", "CPU µs/request"):
        table.add_column(column, justify="left" if column == "server" else "right")
    for name, each in zip(names, throughput, strict=True):
        table.add_row(
            name,
            str(each.clients),
            f"{each.requests_per_second:,.0f}",
            f"{each.p50_ms:.3f}",
            "not to be seen" if each.cpu_us is None else f"{each.cpu_us:.0f}",
        )
    return table


def _engine(bundle: Bundle | None, deployed: str | None, parity: str | None) -> EngineChoice:
    if deployed is None and parity is None:
        return EngineChoice()
    if deployed is None or bundle is None:
        raise UserError("--deployed takes servers of a --bundle's model, --parity those of its own")
    urls = {"deployed": deployed, "parity": parity}
    return EngineChoice(RemoteEngine.name, {k: v for k, v in urls.items() if v is not None})


@bench.command()
def encode(
    json: Json = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Measure this bundle's code, learned or not, for its queries; by default every "
            "code that is not learned.",
            metavar="BUNDLE",
        ),
    ] = None,
) -> None:
    """Compare encoding and decoding with copying one query.

    By default a query is 3x224x224 float32. Every call works on another group's memory, more of it
    than the processor's cache holds, as in a server; `cached` has all of it in the cache. Decoding
    is of one unavailable prediction.
    Medians, in microseconds; ratios are to one copy under the same conditions.
    """
    costs = measure_encode(None if bundle is None else open_bundle(bundle))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("encoder", "decoder"):
        table.add_column(column, no_wrap=True)
    for column in ("k", "encode", "/ copy", "cached", "/ copy", "decode"):
        table.add_column(column, justify="right")
    for cost in costs.codes:
        table.add_row(
            cost.encoder,
            cost.decoder,
            str(cost.k),
            f"{cost.encode_us:.0f}",
            f"{cost.ratio:.2f}x",
            f"{cost.cached_encode_us:.0f}",
            f"{cost.cached_ratio:.2f}x",
            f"{cost.decode_us:.1f}",
        )
    console = Console(highlight=False)
    console.print(
        f"Queries of {'x'.join(map(str, costs.query_shape))} {costs.datatype}. Copying one: "
        f"{costs.copy_us:.0f} µs, in cache {costs.cached_copy_us:.0f} µs. All times in µs.",
    )
    console.print(table)
    first = costs.codes[0]
    console.print(
        f"Encoding k={first.k} by {first.encoder}: {costs.ratio:.2f} times one copy.",
    )
    write_json(json, costs)


@bench.command("http")
def http_layers(
    json: Json = None,
    bundle: BundleOrMlp = None,
    policy: PolicyName = NoRedundancy.name,
    instances: Instances = 1,
) -> None:
    """Compare our HTTP layer with uvicorn and granian.

    These carry the same service by ASGI. All three are in front of one frontend, in one process,
    and are asked in turns, by one client and by 16, over bare sockets that are kept open. Prints
    requests/s, p50 and processor time per request, the workers' included.
    """
    from parity_models_lab.costs.http_layers import measure_http_layers

    opened = None if bundle is None else open_bundle(bundle)
    report = asyncio.run(measure_http_layers(opened, policy, instances=instances))
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    console = Console(highlight=False)
    console.print(
        f"One row of {report.tensor_bytes:,} bytes; policy: {report.policy}; {versions}.",
    )
    console.print(_throughput(report.layers, report.throughput))
    write_json(json, report)


@bench.command("ray")
def on_ray(
    json: Json = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Serve this bundle, with parity if it has a code; by default a generated MLP "
            "(784-200-100-10) and a parity model like it, with random weights.",
            metavar="BUNDLE",
        ),
    ] = None,
    instances: Annotated[
        int, typer.Option(help="Instances of the deployed model, for each frontend.", min=1)
    ] = 2,
    quick: Quick = False,
) -> None:
    """Compare coded serving on Ray with a plain Ray Serve app.

    Also compares two frontends with one. Starts a Ray cluster on this machine. The plain app is an
    ingress and the same model, on as many replicas as there are instances, and speaks bare tensors.
    For one frontend and two, the instances are emulated accelerators: each takes a drawn time for a
    unit and holds no core. All that is compared is asked in turns, by closed-loop clients.
    """
    from parity_models_lab.costs.ray_serve import measure_ray  # imports Ray, an extra

    effort = Effort(rounds=1, calls=10, seconds=0.3) if quick else Effort()
    report = measure_ray(None if bundle is None else open_bundle(bundle), instances, effort)
    console = Console(highlight=False)
    console.print(
        f"The network {report.model} on Ray {report.ray}, {report.cores} cores; policy: "
        f"{report.policy}; {report.instances} instances or replicas.",
    )
    table = Table()
    for column in ("", "p50 ms", "p99 ms", "requests/s"):
        table.add_column(column, justify="right" if column else "left")
    for way, carried in (("plain Ray Serve", report.plain), ("parm", report.coded)):
        latencies = (f"{carried.p50_ms:.2f}", f"{carried.p99_ms:.2f}")
        table.add_row(way, *latencies, f"{carried.requests_per_second:.0f}")
    table.add_section()
    table.add_row("ratio", f"{report.ratio_p50:.2f}x", "", f"{report.ratio_requests:.2f}x")
    console.print(table)
    console.print(f"Latencies: of one client; requests/s: of {report.clients}.")
    console.print(
        f"Emulated accelerators, {report.service_time_ms:.0f} ms a unit, {report.instances} for "
        f"each frontend: one frontend carries {report.one_frontend_requests_per_second:.0f} "
        f"requests/s, two carry {report.two_frontends_requests_per_second:.0f} "
        f"({report.ratio_frontends:.2f}x).",
    )
    write_json(json, report)


@bench.command("page")
def live_page(
    json: Json = None,
    bundle: BundleOrMlp = None,
    policy: PolicyName = NoRedundancy.name,
    rate: Annotated[
        float, typer.Option(help="Queries a second, of each server.", min=1, max=1000)
    ] = 100.0,
    seconds: Annotated[float, duration("How long it counts.", "s", at_least=1)] = 60.0,
    watchers: Annotated[int, typer.Option(help="How many watch.", min=0, max=32)] = WATCHERS,
    models: Annotated[
        int | None,
        typer.Option(
            help="Serve a repository of so many models, all of them the bundle; they are asked in "
            "turn. By default each server has one bundle.",
            min=1,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure what the live page and metrics cost.

    Serves a model four times at once: without a page, with one that nobody watches, with one that
    --watchers do, and without one where metrics are scraped each second; asks each the same queries
    at a steady pace, and compares the processor time of the servers' own processes.
    """
    opened = None if bundle is None else open_bundle(bundle)
    cost = asyncio.run(
        measure_page(
            opened, policy=policy, rate=rate, seconds=seconds, watchers=watchers, models=models
        )
    )
    table = Table()
    for column in ("", "of a core", "at most", ""):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("the server without a page", f"{cost.without:.2%}", "", "")
    for words, share, most in (
        ("a page that nobody watches", cost.unwatched, UNWATCHED_AT_MOST),
        (f"a page that {cost.watchers} watch", cost.watched, WATCHED_AT_MOST),
    ):
        met = "met" if share <= most else "not met"
        table.add_row(words, f"{share:+.2%}", f"{most:.0%}", met)
    table.add_row("metrics that are scraped each second", f"{cost.scraped:+.2%}", "", "")
    console = Console(highlight=False)
    has = "" if cost.models is None else f", which has {cost.models} models"
    console.print(
        f"{cost.rate:.0f} queries/s of each server{has}, for {cost.seconds:.0f} s; "
        f"policy: {policy}.",
    )
    console.print(table)
    write_json(json, cost)
