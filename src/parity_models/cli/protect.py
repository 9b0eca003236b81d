"""parm protect: from a model and its queries to a bundle with the best stand-in."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from parity_models.cli.began import began
from parity_models.cli.extensions import Declared, command_for, flag_of, given_options
from parity_models.cli.json_file import Json, write_json
from parity_models.cli.queries import DataDir
from parity_models.cli.training import (
    DeployedFile,
    DeployedFolder,
    Flips,
    Imitates,
    Inputs,
    MetricName,
    OwnTask,
    deployed_of,
)
from parity_models.errors import UserError, install
from parity_models.evaluation.interval import too_few
from parity_models.options import make_options
from parity_models.protection import Protected, Wishes, protect_model
from parity_models.protection.audience import Audience
from parity_models.protection.frontier_table import (
    as_json,
    dropped_table,
    frontier_table,
    plan_table,
)
from parity_models.training import open_deployed
from parity_models.training.held_out import find_queries
from parity_models.training.progress import SearchBar
from parity_models.training.subject import imitating

COMMAND = command_for(protect=Declared(Wishes))

GROUP = 4
"""Queries of the largest groups that are tried."""


def protect(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="The bundle to write.", metavar="BUNDLE")],
    model: DeployedFile = None,
    deployed: DeployedFolder = None,
    task: OwnTask = None,
    inputs: Inputs = None,
    imitates: Imitates = None,
    metric: MetricName = None,
    flips: Flips = False,
    data_dir: DataDir = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Show why each candidate was dropped, and why one is taken or two."
        ),
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Where to draw the frontier, .svg or .png; by default beside BUNDLE.",
            metavar="FILE",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Find the best stand-in for a model in a given time, and bundle the two.

    Backups and parity models of several sizes learn from the model's own predictions; labels are
    not needed. Those that others beat are dropped, the others are trained for longer, calibrated,
    timed, and simulated under your load: each alone, the best backup and the best parity model
    together, and the two best backups. Two are written only if they are better than one by more
    than chance; --explain says so in numbers.
    What has the lowest p99 within --extra-work is written. Ctrl-C ends the search early and writes
    the best so far; --resume goes on.
    """
    source = deployed_of(model, deployed)
    wishes = make_options(Wishes, given_options(context, "protect"), flag_of)
    with open_deployed(source, (), queries=inputs) as opened:
        bundle = imitating(opened, imitates)
        queries = find_queries(bundle, task, inputs, data_dir, metric, flips, GROUP)
        with _audience() as audience:
            found = protect_model(bundle, queries, out, wishes, audience, began(context))
    _show(found, explain, wishes)
    _draw(found, picture or out.with_name(f"{out.name}.svg"), wishes.agreement)
    write_json(json, as_json(found))


@contextmanager
def _audience() -> Iterator[Audience]:
    """One that shows all on stderr."""
    bar = SearchBar()
    try:
        yield Audience(
            searching=bar, searched=bar.close, say=lambda said: typer.echo(said, err=True)
        )
    finally:
        bar.close()


def _show(found: Protected, explain: bool, wishes: Wishes) -> None:
    console = Console()
    console.print(frontier_table(found))
    if sentence := too_few(found.test_queries):
        typer.echo(sentence, err=True)
    console.print(plan_table(found.plans, found.scene, found.served))
    if explain and found.dropped:
        console.print(dropped_table(found.dropped))
    for sentence in found.advice.together if explain else ():
        typer.echo(sentence)
    for sentence in found.advice.sentences:
        typer.echo(sentence)
    flags = {
        "agreement": wishes.agreement,
        "urgency": found.advice.plan.urgency,
        "max-batch": wishes.max_batch,
    }
    said = "".join(f" --{name} {value:g}" for name, value in flags.items() if value)
    typer.echo(f"{found.bundle.path} holds it; serve it with: parm serve {found.bundle.path}{said}")
    if found.interrupted:
        typer.echo("interrupted: this is the best so far; the same command with --resume goes on")


def _draw(found: Protected, path: Path, level: float) -> None:
    if find_spec("matplotlib") is None:
        typer.echo(f"for a picture of the frontier: {install('bench')}")
        return
    from parity_models.protection.picture import draw_frontier  # an extra of its own

    try:
        draw_frontier(path, found.finalists, level)
    except (OSError, ValueError) as error:  # a folder that is not there; no kind of picture
        raise UserError(f"cannot draw {path}: {error}") from error
    typer.echo(f"the frontier is drawn in {path}")
