"""parm calibrate: where the stand-ins of any bundle may answer."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from parity_models.cli.accuracy import Agreements, calibrate_gates
from parity_models.cli.code import AllowCode
from parity_models.cli.queries import DataDir
from parity_models.errors import UserError
from parity_models.evaluation import calibration_table
from parity_models.evaluation.judged_queries import metric_for
from parity_models.evaluation.predictor import Inputs
from parity_models.models.bundle import Bundle, open_bundle
from parity_models.models.queries import read_batch
from parity_models.tasks import METRICS, TASKS, Task, choose_task, find_task, is_ours


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="Held-out queries like those that will be served, without labels: an .npy or "
            ".npz file, or a folder of .npy files and images. By default most of the validation "
            "set of the task that the deployed model was trained on.",
            metavar="FILE",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help=f"The task whose validation set to use ({', '.join(TASKS.names)}, "
            "or package.module:Class).",
            metavar="TASK",
        ),
    ] = None,
    data_dir: DataDir = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help=f"What says whether outputs agree: {', '.join(METRICS)}; by default what the "
            "stand-ins were trained for.",
            metavar="NAME",
        ),
    ] = None,
    agreement: Agreements = None,
    seed: Annotated[int, typer.Option(help="Draws the groups.", min=0, metavar="N")] = 0,
    allow_code: AllowCode = None,
) -> None:
    """Calibrate the gates of a bundle's stand-ins, and write them into it.

    For each level of agreement: how sure a stand-in has to be of an output so that, of the outputs
    that it is so sure of, at least that share says what the deployed model says. `parm parity` and
    `parm backup` do the same in the end. Neither the deployed model nor its stand-ins may have been
    trained on the queries, and a thousand or more are needed for a level of 0.99. `parm serve
    --agreement` chooses a level.
    """
    opened = open_bundle(bundle, allow_code or ())
    manifest = opened.manifest
    if manifest.code is None and not manifest.backups:
        raise UserError(
            f"{bundle} has no stand-in to calibrate; make one with `parm parity --from {bundle} "
            "--out BUNDLE`"
        )
    if inputs is not None and task is not None:
        raise UserError("give either --task or --inputs, not both")
    queries: Inputs
    if inputs is not None:
        queries = read_batch(inputs, manifest.deployed.signature)
    else:
        known = _task(opened, task)
        k = 1 if manifest.code is None else manifest.code.k
        _, queries = known.load(data_dir).validation.part(k)
        metric = metric or known.metric
    judged = metric_for(opened, metric)
    opened = calibrate_gates(opened, judged, queries, agreement or (), seed, again=True)
    if any(each.levels for each in opened.manifest.calibration.values()):
        Console().print(calibration_table(opened.manifest.calibration))


def _task(bundle: Bundle, name: str | None) -> Task:
    training = bundle.manifest.deployed_training
    if name is not None:
        return choose_task(name)
    if training is not None and is_ours(training.task):
        return find_task(training.task)
    raise UserError(
        f"{bundle.path} does not say what task it is for; give held-out queries with --inputs, "
        "labels are not needed, or name its task with --task"
    )
