"""parm-lab approaches: what else could answer an unavailable prediction, and how well."""

from typing import Annotated

import typer
from rich.console import Console
from tqdm import tqdm

from parity_models.cli.code import AllowCode
from parity_models.cli.json_file import Json, write_json
from parity_models.cli.queries import BundleFolder, DataDir, GroupSeed, TestTask, task_of
from parity_models.errors import UserError
from parity_models.evaluation import approaches_table, compare_approaches
from parity_models.evaluation.compare import group_of
from parity_models.models.bundle import open_bundle


def approaches(
    bundle: BundleFolder,
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
    task: TestTask = None,
    data_dir: DataDir = None,
    seed: GroupSeed = 0,
    json: Json = None,
    allow_code: AllowCode = None,
) -> None:
    """Compare approaches to unavailable predictions, on a task's whole test set.

    The bundle's own code and backup; replication; a default prediction; and codes that need no
    parity model, for groups of k with up to r unavailable: linear, Lagrange, Berrut (ApproxIFER)
    and nested regression (NeRCC). Prints accuracy with nothing unavailable, of degraded answers,
    and overall, what each costs in extra work, and the time to encode and decode.
    """
    opened = open_bundle(bundle, allow_code or ())
    judged = task_of(opened, task)
    if judged is None:
        raise UserError(f"{bundle} does not say what task it is for; name it with --task")
    k, r = group_of(opened, k, r)
    data, metric = judged.load(data_dir), judged.metric
    compared = compare_approaches(
        opened, data.test, data.validation, k=k, r=r, degree=degree, metric=metric, seed=seed
    )
    measured = list(tqdm(compared, desc="comparing", unit="approach"))
    title = f"{bundle}: {metric}, k={k}, r={r}"
    Console().print(approaches_table(measured, title))
    if json is not None:
        report = {"bundle": str(bundle), "task": judged.name, "metric": metric, "k": k, "r": r}
        write_json(json, {**report, "seed": seed, "approaches": measured})
