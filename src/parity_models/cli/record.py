"""parm record: what a running server meets, for simulations."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from parity_models.cli.credentials import CaFile, Token
from parity_models.cli.duration import duration
from parity_models.cli.json_file import write_json
from parity_models.cli.report_file import check_file
from parity_models.load.recorder import STEP
from parity_models.load.recorder import record as record_server
from parity_models.scheduling import DEPLOYED
from parity_models.serving.client import Credentials
from parity_models.simulation.recording import Recording


def record(
    url: Annotated[
        str, typer.Argument(help="The server's URL, or that of its metrics.", metavar="URL")
    ],
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")],
    seconds: Annotated[
        float,
        duration("How long to record, in seconds or with a unit, as 5m.", "s"),
    ] = 60.0,
    token: Token = None,
    ca_file: CaFile = None,
) -> None:
    """Record how long a running server's units take and when it is asked, from its metrics.

    `parm plan --recorded FILE` sizes by it, and it is contention that `parm plan` and `parm
    protect` take. The server is asked for its metrics once a second, and is not slowed down.
    Record it under its usual load.
    """
    check_file(out)
    credentials = Credentials(token, ca_file)
    with tqdm(total=seconds, unit="s", desc="recording") as bar:
        recording = record_server(url, seconds, lambda _: bar.update(STEP) and None, credentials)
        found = asyncio.run(recording)
    write_json(out, found)
    typer.echo(_said(found))
    typer.echo(f"{out} holds it; size by it with: parm plan BUNDLE --recorded {out}")


def _said(found: Recording) -> str:
    runs = found.runs[DEPLOYED]
    return (
        f"{sum(found.ended):,} queries in {found.seconds:.0f} s ({found.rate:.1f}/s) on "
        f"{found.instances} instances: p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms, p99.9 "
        f"{found.p999_ms:.1f} ms. {runs.units:,} units of the model: median "
        f"{1e3 * runs.median:.1f} ms, mean {1e3 * runs.mean:.1f} ms, the longest about "
        f"{1e3 * runs.quantiles[-1]:.1f} ms."
    )
