"""parm-lab reproduce accuracy: every task, network and code of a matrix, beside the baselines."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from parity_models_lab.accuracy.accuracy_report import write_report
from parity_models_lab.accuracy.matrix import PRESETS, DeployedCell, load_matrix
from parity_models_lab.accuracy.results import ModelResults
from parity_models_lab.accuracy.run import MatrixRun
from parity_models_lab.cli.report_file import check_report, typed_command

REPORT = Path("lab/results/accuracy.md")


def accuracy(
    preset: Annotated[
        str,
        typer.Option(
            help=f"What is run: {', '.join(PRESETS)}, or a matrix file of yours.", metavar="PRESET"
        ),
    ] = "quick",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The report to write; its pictures go into a folder beside it. By default "
            f"{REPORT}, or for a matrix of yours MATRIX.md here.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    work: Annotated[
        Path,
        typer.Option(
            help="The folder for results, bundles and data, used again next time.", metavar="DIR"
        ),
    ] = Path("runs/accuracy"),
    seed: Annotated[
        int, typer.Option(help="Fixes weights, the order of data and groups.", min=0)
    ] = 0,
) -> None:
    """Train and measure every model and code of a matrix.

    Writes a report with tables and pictures. The quick preset takes about fifty minutes on two
    cores, the paper preset seven to eight hours. What was run before is not run again, and a
    training that was cut off goes on: interrupt it at any time, which reports what is done, and
    give the same command again.
    """
    if out is None:
        out = REPORT if preset in PRESETS else Path(f"{Path(preset).stem}.md")
    matrix = load_matrix(preset)
    check_report(out)
    console = Console(stderr=True, highlight=False)
    run = MatrixRun(
        matrix, work, seed, lambda said: console.print(said, markup=False, soft_wrap=True)
    )
    results: dict[DeployedCell, ModelResults] = {}
    complete = False
    try:
        for model in run.results():
            results[model.cell] = model
        complete = True
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here", markup=False)
        if not results:
            raise typer.Exit(130) from None
    write_report(out, matrix.title, list(results.values()), typed_command(), complete=complete)
    typer.echo(f"Wrote {out} and its pictures.")
    if not complete:
        raise typer.Exit(130)
