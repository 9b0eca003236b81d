"""parm-lab demo: the whole path on real data, and what it buys."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from parity_models.load.report import LoadReport, Percentiles
    from parity_models.tasks import Task
    from parity_models_lab.demo import DemoSummary


def demo(
    out: Annotated[
        Path,
        typer.Option(help="The folder for bundle, summary.json and latency.png.", metavar="DIR"),
    ] = Path("demo"),
    task: Annotated[
        str, typer.Option(help="The task to train for: see parm-lab data list.", metavar="TASK")
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
    workers on the deployed model (equal resources), once with the policy parity. Takes about two
    minutes on two cores.
    """
    typer.echo("Loading libraries and data, which takes some seconds.")
    # Only now, as it takes those seconds, and far more on a machine that has much else to do.
    from rich.console import Console

    from parity_models.tasks import find_task

    chosen = find_task(task)
    console = Console(highlight=False)
    _compare(console, out, chosen, seed, data_dir)


def _compare(console: "Console", out: Path, task: "Task", seed: int, data_dir: Path | None) -> None:
    from parity_models_lab.demo import run_demo

    summary = run_demo(
        out,
        task,
        seed=seed,
        data_dir=data_dir,
        tell=console.print,
    )
    console.print(_table(summary))
    equal, parity = (_latency(summary.policies[name]) for name in ("equal_resources", "parity"))
    console.print(
        f"The gap between p99.9 and the median is {equal.gap_ms / parity.gap_ms:.1f} times smaller "
        f"with parity models. See {out / 'latency.png'}; serve it: parm serve {out / 'bundle'}",
    )


def _table(summary: "DemoSummary") -> "Table":
    from rich.table import Table

    from parity_models.scheduling import Source

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
    for name, report in summary.policies.items():
        latency = _latency(report)
        rebuilt = report.sources.get(Source.RECONSTRUCTION)
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
            f"{report.answered:,}",
            f"{sum(report.errors.values()):,}",
            f"{rebuilt.count / report.answered if rebuilt else 0:.1%}",
            f"{report.accuracy:.2%}",
        )
    return table


def _latency(report: "LoadReport") -> "Percentiles":
    assert report.latency is not None  # a demo without an answer has no summary
    return report.latency
