"""parm-lab bench start: how long a server takes to be ready."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from parity_models.cli.json_file import Json, write_json
from parity_models.models.bundle import open_bundle
from parity_models_lab.cli.bench_options import BundleOrMlp
from parity_models_lab.costs.start import AT_MOST, measure_start


def start(
    json: Json = None,
    bundle: BundleOrMlp = None,
    instances: Annotated[int, typer.Option(help="Instances of the deployed model.", min=1)] = 2,
    starts: Annotated[int, typer.Option(help="How often it is started.", min=1)] = 5,
) -> None:
    """Measure how long `parm serve` takes until it is ready.

    Each start is a process of its own, timed from its start; it is ended once it serves.
    """
    times = measure_start(
        None if bundle is None else open_bundle(bundle), instances=instances, starts=starts
    )
    table = Table()
    for column in ("", "seconds", "at most", ""):
        table.add_column(column, justify="right" if column else "left")
    met = "met" if times.median <= AT_MOST else "not met"
    table.add_row("median", f"{times.median:.2f}", f"{AT_MOST:.1f}", met)
    table.add_row("shortest", f"{min(times.seconds):.2f}", "", "")
    table.add_row("longest", f"{max(times.seconds):.2f}", "", "")
    console = Console(highlight=False)
    console.print(
        f"{starts} starts of {times.bundle!r} with {times.instances} instances.", highlight=False
    )
    console.print(table)
    write_json(json, times)
