"""parm bench: what the parts of coded serving cost."""

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from parity_models.bench.encode import measure_encode
from parity_models.bench.overhead import measure_overhead
from parity_models.errors import UserError
from parity_models.models.bundle import open_bundle

bench = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure what the parts of coded serving cost.",
)

Json = Annotated[
    Path | None, typer.Option(help="Write the numbers to this file, too.", metavar="FILE")
]


@bench.command()
def overhead(
    json: Json = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Use this bundle's deployed model; by default a generated MLP (784-200-100-10) "
            "with random weights.",
            metavar="BUNDLE",
        ),
    ] = None,
) -> None:
    """Measure an infer over HTTP beside the same call to ONNX Runtime in process.

    One client sends one row at a time, as a binary tensor, over a bare socket that is kept
    open; the server has one instance and no redundancy. Rounds of both take turns. Prints p50
    and p99 of both, and their difference and ratio at p50.
    """
    report = asyncio.run(measure_overhead(None if bundle is None else open_bundle(bundle)))
    table = Table(
        title=f"one row of {report.tensor_bytes:,} bytes through {report.model}, "
        f"{report.calls:,} calls each, client: {report.client}",
        title_justify="left",
    )
    for column in ("", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right" if column else "left")
    for way, latency in (("in process", report.direct), ("over HTTP", report.served)):
        table.add_row(way, f"{latency.p50_ms:.3f}", f"{latency.p99_ms:.3f}")
    table.add_section()
    table.add_row("difference at p50", f"{report.difference_p50_ms:.3f}")
    table.add_row("ratio at p50", f"{report.ratio_p50:.1f}x")
    _tell(table, json, report)


@bench.command()
def encode(json: Json = None) -> None:
    """Measure encoding and decoding beside copying one query, for queries of 3x224x224 float32.

    Every call works on another group's memory, more of it than the processor's cache holds, as
    in a server; the costs with the memory in the cache stand beside. Medians, in microseconds;
    ratios are to one copy under the same conditions.
    """
    costs = measure_encode()
    table = Table(
        title=f"queries of {'x'.join(map(str, costs.query_shape))} {costs.datatype}; "
        f"copying one: {costs.copy_us:.0f} µs, in cache: {costs.cached_copy_us:.0f} µs",
        title_justify="left",
    )
    for column in ("code", "k", "encode µs", "/ copy", "in cache µs", "/ copy", "decode one µs"):
        table.add_column(column, justify="left" if column == "code" else "right")
    for cost in costs.codes:
        table.add_row(
            f"{cost.encoder} + {cost.decoder}",
            str(cost.k),
            f"{cost.encode_us:.0f}",
            f"{cost.ratio:.2f}x",
            f"{cost.cached_encode_us:.0f}",
            f"{cost.cached_ratio:.2f}x",
            f"{cost.decode_us:.1f}",
        )
    table.caption = f"encoding k = 2 by sum takes {costs.ratio:.2f} times as long as one copy"
    table.caption_justify = "left"
    _tell(table, json, costs)


def _tell(table: Table, path: Path | None, report: msgspec.Struct) -> None:
    Console().print(table)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
