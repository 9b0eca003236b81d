"""parm-lab reproduce real: stand-ins of real models on real queries."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from parity_models_lab.cli.report_file import check_report
from parity_models_lab.real.measure import measure
from parity_models_lab.real.prepared import Prepared
from parity_models_lab.real.real_report import write_report
from parity_models_lab.real.results import RealResult, digest
from parity_models_lab.result_cache import ResultCache


def real(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="What the programs in examples/real/ wrote: a folder for each model.",
            metavar="FOLDER",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The report to write.", metavar="FILE")] = Path(
        "lab/results/real-models.md"
    ),
    work: Annotated[
        Path, typer.Option(help="The folder for results, used again next time.", metavar="DIR")
    ] = Path("runs/real"),
    seed: Annotated[int, typer.Option(help="Fixes weights and the order of data.", min=0)] = 0,
) -> None:
    """Train and judge the stand-ins of real models.

    Writes a page of how accurate they are and what they cost. What was measured before is not
    measured again, as long as nothing in its folder has changed.
    """
    check_report(out)
    prepared = [Prepared(folder) for folder in folders]
    cache = ResultCache(work)
    console = Console(stderr=True, highlight=False)
    results = []
    for one in prepared:
        key = digest(one.key, str(seed))
        result = cache.get(key, RealResult)
        if result is None:
            result = measure(one, seed, lambda said: console.print(said, markup=False))
            cache.put(key, result)
        results.append(result)
    write_report(out, results, shlex.join(["parm-lab", *sys.argv[1:]]))
    typer.echo(f"Wrote {out}.")
