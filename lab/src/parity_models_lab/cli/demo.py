"""parm-lab demo: the whole path on real data, and what it buys."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[
        Path, typer.Option(help="The folder for the bundle, results and the plot.", metavar="DIR")
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
    from parity_models.tasks import find_task
    from parity_models_lab.demo import run_demo
    from parity_models_lab.results import print_rows

    summary = run_demo(out, find_task(task), seed=seed, data_dir=data_dir, tell=typer.echo)
    rows = []
    for name, report in summary.policies.items():
        assert report.latency is not None  # a demo without an answer has no summary
        latency = report.latency
        rows.append(
            {
                "policy": name.replace("_", " "),
                "p50": latency.p50_ms,
                "p99": latency.p99_ms,
                "p99.9": latency.p999_ms,
                "gap": latency.gap_ms,
                "answers": report.answered,
                "errors": sum(report.errors.values()),
                "stood in": summary.stood_in(name),
                "accuracy": report.accuracy,
            }
        )
    print_rows("Latencies in ms", rows)
    equal, parity = (float(str(row["gap"])) for row in rows)
    typer.echo(
        f"The gap between p99.9 and the median is {equal / parity:.1f} times smaller with parity "
        f"models. See {out / 'latency.png'}; serve it: parm serve {out / 'bundle'}"
    )
