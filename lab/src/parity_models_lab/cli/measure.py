"""parm-lab overhead, path, encode: what the parts of coded serving cost."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from parity_models.models.bundle import open_bundle
from parity_models.scheduling.policies import NoRedundancy
from parity_models_lab.encode import measure_encode
from parity_models_lab.overhead import ROUNDS, SECONDS, measure_overhead
from parity_models_lab.path import count_path
from parity_models_lab.results import check_out, print_rows, write_result

Out = Annotated[
    Path | None, typer.Option(help="Write the result to this folder, too.", metavar="DIR")
]


def overhead(
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Serve this bundle; by default a generated MLP (784-200-100-10).",
            metavar="BUNDLE",
        ),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(help="The server's policy.", metavar="POLICY"),
    ] = NoRedundancy.name,
    instances: Annotated[int, typer.Option(help="Instances of the deployed model.", min=1)] = 1,
    against: Annotated[
        str | None,
        typer.Option(
            help="Compare with these servers, which run the same model already: "
            "http://HOST:PORT or http://HOST:PORT/MODEL, separated by commas.",
            metavar="URLS",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure briefly; the numbers are rougher.")
    ] = False,
    out: Out = None,
) -> None:
    """Compare requests over HTTP with calls to ONNX Runtime, and with other servers.

    One client, then 16, send one row at a time over bare sockets that are kept open. Servers and
    calls take turns. Latencies in ms; processor time is that of all the server's processes.
    """
    _check(out)
    rows = asyncio.run(
        measure_overhead(
            None if bundle is None else open_bundle(bundle),
            policy,
            instances=instances,
            against=() if against is None else against.split(","),
            rounds=3 if quick else ROUNDS,
            seconds=0.1 if quick else SECONDS,
        )
    )
    title = f"One row a request, policy {policy}, instances {instances}"
    print_rows(title, rows)
    if out is not None:
        write_result(out / "overhead.json", title, rows)


def path(out: Out = None) -> None:
    """Count the files and Python calls that one REST request takes in the server's process.

    Serves a generated MLP with the default policy, and counts with the profiler on the event
    loop's thread. Shows the median of requests sent one after the other.
    """
    _check(out)
    rows = count_path()
    calls = sum(int(str(row["calls"])) for row in rows)
    title = f"{len(rows)} files and {calls} calls for a request"
    print_rows(title, rows)
    if out is not None:
        write_result(out / "path.json", title, rows)


def encode(
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Measure this bundle's code; by default every code that is not learned.",
            metavar="BUNDLE",
        ),
    ] = None,
    out: Out = None,
) -> None:
    """Compare encoding and decoding with copying one query.

    By default a query is 3x224x224 float32. Every call works on another group's memory, more of it
    than the processor's cache holds, as in a server; `cached` has all of it in the cache.
    """
    _check(out)
    rows = measure_encode(None if bundle is None else open_bundle(bundle))
    title = "Median µs for a group"
    print_rows(title, rows)
    if out is not None:
        write_result(out / "encode.json", title, rows)


def _check(out: Path | None) -> None:
    if out is not None:
        check_out(out)
