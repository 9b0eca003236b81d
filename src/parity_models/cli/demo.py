"""parm demo: the whole path on real data, and what it buys."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from parity_models.lab.demo import DemoSummary, run_demo
from parity_models.tasks import TASKS, find_task


def demo(
    out: Annotated[
        Path, typer.Option(help="The folder for bundle, summary.json and latency.png.")
    ] = Path("demo"),
    task: Annotated[
        str, typer.Option(help=f"The task to train for: {', '.join(TASKS)}.")
    ] = "digits",
    seed: Annotated[
        int, typer.Option(help="Fixes training, load and faults.", min=0, max=2**32 - 1)
    ] = 0,
    data_dir: Annotated[
        Path | None, typer.Option(help="The folder of the task's data.", metavar="DIR")
    ] = None,
) -> None:
    """Train, serve under injected slowdowns and a kill, and compare the tails.

    Trains a deployed and a parity model on real data, then serves them twice on this machine,
    with the same number of workers, the same load and the same injected faults: once with all
    workers on the deployed model (equal resources), once with parity models. Takes about two
    minutes on two cores.
    """
    console = Console()
    summary = run_demo(
        out,
        find_task(task),
        seed=seed,
        data_dir=data_dir,
        tell=lambda text: console.print(text, highlight=False),
    )
    console.print(_table(summary))
    equal, parity = summary.policies["equal_resources"], summary.policies["parity"]
    console.print(
        f"The gap between p99.9 and the median is {equal.gap_ms / parity.gap_ms:.1f} times smaller "
        f"with parity models. See {out / 'latency.png'}; serve it: parm serve {out / 'bundle'}",
        highlight=False,
    )


def _table(summary: DemoSummary) -> Table:
    table = Table(caption="latencies in ms", caption_justify="right")
    table.add_column("policy")
    for heading in (
        "p50",
        "p99",
        "p99.9",
        "gap",
        "answers",
        "errors",
        "recon-\nstructed",
        "accu-\nracy",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, latency in summary.policies.items():
        table.add_row(
            name.replace("_", "\n"),
            *(
                f"{milliseconds:.1f}"
                for milliseconds in (
                    latency.p50_ms,
                    latency.p99_ms,
                    latency.p999_ms,
                    latency.gap_ms,
                )
            ),
            f"{latency.answered:,}",
            f"{latency.errors:,}",
            f"{latency.reconstructed_share:.1%}",
            f"{latency.accuracy:.2%}",
        )
    return table
