"""parm approaches: what else could answer an unavailable prediction, and how well."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from tqdm import tqdm

from parity_models.cli.json_file import write_json
from parity_models.errors import UserError
from parity_models.evaluation import approaches_table, compare_approaches
from parity_models.models.bundle import open_bundle
from parity_models.tasks import TASKS, choose_task, find_task


def approaches(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    k: Annotated[
        int | None,
        typer.Option("--k", help="Queries in a coding group; by default the bundle's, or 2."),
    ] = None,
    r: Annotated[
        int | None,
        typer.Option(
            "--r", min=1, help="How many may be unavailable; by default the bundle's, or 1."
        ),
    ] = None,
    degree: Annotated[
        int, typer.Option(help="The degree of the polynomial that Lagrange coding takes F for.")
    ] = 2,
    task: Annotated[
        str | None,
        typer.Option(
            help=f"The task whose test set to use ({', '.join(TASKS)}, or "
            "package.module:Class); by default the one that the deployed model was trained on.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="The folder of the task's data.", metavar="DIR")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the groups.", min=0)] = 0,
    json: Annotated[
        Path | None, typer.Option(help="Write the numbers to this file, too.", metavar="FILE")
    ] = None,
) -> None:
    """Compare approaches to unavailable predictions, on a task's whole test set.

    The bundle's own code and backup; replication; a default prediction; and codes that need no
    parity model, for groups of k with up to r unavailable: linear, Lagrange, Berrut (ApproxIFER)
    and nested regression (NeRCC). Prints accuracy with nothing unavailable, of degraded answers,
    and overall, what each costs in extra work, and the time to encode and decode.
    """
    opened = open_bundle(bundle)
    code, training = opened.manifest.code, opened.manifest.deployed_training
    if k is None:
        k = code.k if code else 2
    if r is None:
        r = code.r if code else 1
    name = task or (training.task if training else None)
    if name is None:
        raise UserError(f"{bundle} does not say what task it is for; name it with --task")
    judged = find_task(name) if task is None else choose_task(task)
    dataset = judged.load(data_dir)
    compared = compare_approaches(
        opened,
        dataset.test,
        dataset.validation,
        k=k,
        r=r,
        degree=degree,
        metric=judged.metric,
        seed=seed,
    )
    measured = list(tqdm(compared, desc="comparing", unit="approach"))
    Console().print(approaches_table(measured, f"{bundle}: {judged.metric}, k={k}, r={r}"))
    if json is not None:
        write_json(
            json,
            {
                "bundle": str(bundle),
                "task": judged.name,
                "metric": judged.metric,
                "k": k,
                "r": r,
                "seed": seed,
                "approaches": measured,
            },
        )
