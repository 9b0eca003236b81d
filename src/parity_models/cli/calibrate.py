"""parm calibrate: where the stand-ins of any bundle may answer."""

from pathlib import Path
from typing import Annotated

import typer

from parity_models.cli.accuracy import rows_bar
from parity_models.cli.code import AllowCode
from parity_models.cli.queries import DataDir
from parity_models.evaluation.calibration import LEVELS
from parity_models.evaluation.judging import calibrate as calibrate_bundle
from parity_models.tasks import METRICS, TASKS

Agreements = Annotated[
    list[float] | None,
    typer.Option(
        "--agreement",
        help="Calibrate the gate for this level of agreement, too, besides "
        f"{', '.join(f'{level:g}' for level in LEVELS)}; may be given several times.",
        metavar="SHARE",
    ),
]


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
    with rows_bar("calibrating") as progress:
        calibrated = calibrate_bundle(
            bundle,
            inputs,
            task=task,
            data_dir=data_dir,
            metric=metric,
            agreement=agreement or (),
            seed=seed,
            allow_code=allow_code or (),
            progress=progress,
        )
    calibrated.gates.show()
