"""parm-lab reproduce protect: parm protect, held to what it promises."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from parity_models.cli.duration import duration
from parity_models_lab.cli.report_file import check_report, typed_command
from parity_models_lab.protection.protection_report import write_report
from parity_models_lab.protection.run import prove, quick, whole

REPORT = Path("lab/results/protect.md")


def protect(
    minutes: Annotated[
        float,
        duration(
            "The minutes of parm protect for the slow model.", "min", at_least=0.1, at_most=1000
        ),
    ] = 3.0,
    seconds: Annotated[
        float,
        duration("How long each of two real runs takes.", "s", at_least=1, at_most=86_400),
    ] = 60.0,
    in_short: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="In a minute, with a small model of digits: whether all of it works. The other "
            "figures need Fashion-MNIST.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"The report to write; by default {REPORT}, or with --quick protect-quick.md "
            "here.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    work: Annotated[
        Path,
        typer.Option(
            help="The folder for models, bundles and results, used again next time.", metavar="DIR"
        ),
    ] = Path("runs/protect"),
    seed: Annotated[int, typer.Option(help="Fixes weights, data and arrivals.", min=0)] = 0,
) -> None:
    """Judge parm protect by its time, and by the tail it promises.

    Of a residual network that takes some 3 ms, with 10,000 queries, parm protect is to take no more
    than its minutes, and the tail that it simulates is to be that of a real run of what it
    recommends. Of an MLP, in 2 minutes, it is to find a stand-in as good as the model. All of it
    takes eight minutes, and a few more the first time, as the models are trained here. What was
    measured before is not measured again.
    """
    report = out or (Path("protect-quick.md") if in_short else REPORT)
    check_report(report)
    console = Console(stderr=True, highlight=False)
    cases = quick(seed) if in_short else whole(minutes, seconds, seed)
    proofs = prove(cases, work, lambda said: console.print(said, markup=False, soft_wrap=True))
    write_report(report, proofs, typed_command())
    typer.echo(f"Wrote {report}.")
