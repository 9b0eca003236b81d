"""parm evaluate: a bundle's accuracy when predictions are unavailable."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from parity_models.cli.accuracy import measure_accuracy
from parity_models.cli.json_file import write_json
from parity_models.errors import BundleError, UserError
from parity_models.models.bundle import open_bundle, with_accuracy
from parity_models.tasks import TASKS, find_task


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    json: Annotated[
        Path | None, typer.Option(help="Write the numbers to this file, too.", metavar="FILE")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help=f"The task whose test set to use ({', '.join(TASKS)}); "
            "by default the one that the deployed model was trained on.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="The folder of the task's data.", metavar="DIR")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the groups.", min=0)] = 0,
) -> None:
    """Measure accuracy on the whole test set, each member of each group unavailable in turn.

    Prints A_a (of the deployed model), A_d (reconstructions alone, overall and per slot), A_o
    (overall, for 1, 5, 10 and 20 % of predictions unavailable) and how often reconstructions
    agree with the deployed model. The numbers go into the bundle's manifest as well.
    """
    opened = open_bundle(bundle)
    training = opened.manifest.deployed_training
    trained_on = None if training is None else training.task
    name = task or trained_on
    if name is None:
        raise UserError(f"{bundle} does not say what task it is for; name it with --task")
    judged = find_task(name)
    accuracy = measure_accuracy(opened, judged, judged.load(data_dir).test, seed)
    if trained_on in (None, name):
        try:
            with_accuracy(opened, accuracy)
        except BundleError as error:
            typer.echo(f"note: the numbers are not in the manifest: {error}", err=True)
    if json is not None:
        write_json(
            json,
            {
                "bundle": str(bundle),
                "task": name,
                "code": opened.manifest.code,
                "seed": seed,
                **msgspec.structs.asdict(accuracy),
            },
        )
