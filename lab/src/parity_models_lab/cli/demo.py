"""parm-lab demo: the whole path on real data, and what it buys."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parity_models.errors import UserError
from parity_models.serving.access import MAX_PORT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from parity_models.load.report import LoadReport, Percentiles
    from parity_models.tasks import Task
    from parity_models_lab.demo import DemoSummary

PORT = 8080
"""The live page's port, where none is given."""

LiveBundle = Annotated[
    Path | None, typer.Option(help="With --live: this bundle, with --inputs.", metavar="BUNDLE")
]
LiveInputs = Annotated[
    Path | None,
    typer.Option(help="With --bundle: its queries, an array of rows in .npy.", metavar="FILE"),
]
LivePort = Annotated[
    int | None,
    typer.Option(
        help=f"With --live: the page's port, {PORT} without this; 0 takes any that is free.",
        min=0,
        max=MAX_PORT,
        show_default=False,
    ),
]


def demo(
    context: typer.Context,
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
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Serve until Ctrl-C instead, and show it on a page on which you harm instances.",
        ),
    ] = False,
    bundle: LiveBundle = None,
    inputs: LiveInputs = None,
    port: LivePort = None,
) -> None:
    """Train, serve under injected slowdowns and a kill, and compare the tails.

    Trains a deployed and a parity model on real data, then serves them twice on this machine,
    with the same number of workers, the same load and the same injected faults: once with all
    workers on the deployed model (equal resources), once with the policy parity. Takes about two
    minutes on two cores.

    With --live, both are served at once, side by side on one page, the default policy on the left:
    kill, stop, slow down or corrupt an instance there, change the load and the policies, and watch
    the tail. The bundle is the one in --out, if it is there.
    """
    _refuse_contradictions(context, live)
    typer.echo("Loading libraries and data, which takes some seconds.")
    # Only now, as it takes those seconds, and far more on a machine that has much else to do.
    from rich.console import Console

    from parity_models.tasks import find_task

    chosen = find_task(task)
    console = Console(highlight=False)
    if not live:
        _compare(console, out, chosen, seed, data_dir)
        return
    from parity_models_lab.cli.demo_live import serve_own, serve_task

    page = PORT if port is None else port
    if bundle is not None and inputs is not None:
        serve_own(console, bundle, inputs, page)
    else:
        serve_task(console, chosen, out, page, seed=seed, data_dir=data_dir)


def _refuse_contradictions(context: typer.Context, live: bool) -> None:
    """Raises UserError for options that say nothing beside the others."""
    given = {
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    }
    if ("bundle" in given) != ("inputs" in given):
        raise UserError("a bundle of yours needs queries; give --bundle and --inputs together")
    if "bundle" in given and not live:
        raise UserError("--bundle and --inputs are for --live; leave them out, or add it")
    if "port" in given and not live:
        raise UserError("--port is for --live; leave it out, or add it")
    for option in ("out", "task", "seed", "data_dir"):
        if "bundle" in given and option in given:
            flag = f"--{option.replace('_', '-')}"
            raise UserError(f"{flag} is for a task; leave it out beside a --bundle of yours")


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
