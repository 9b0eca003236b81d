"""parm evaluate: a bundle's accuracy when predictions are unavailable."""

from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from parity_models.cli.accuracy import measure_accuracy
from parity_models.cli.json_file import write_json
from parity_models.errors import BundleError, UserError
from parity_models.evaluation.inference_table import inference_table
from parity_models.models.bundle import Bundle, open_bundle, with_accuracy
from parity_models.tasks import METRICS, TASKS, choose_task, find_task
from parity_models.tasks.task import Labels
from parity_models.tasks.unlabelled import choose_metric
from parity_models.tasks.user_data import check_varied, load_inputs, load_labels


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    json: Annotated[
        Path | None, typer.Option(help="Write the numbers to this file, too.", metavar="FILE")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help=f"The task whose test set to use ({', '.join(TASKS)}, "
            "or package.module:Class); "
            "by default the one that the deployed model was trained on.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="The folder of the task's data.", metavar="DIR")
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="Queries of your own instead of a task's: an .npy or .npz file, or a folder of "
            ".npy files and images.",
            metavar="PATH",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="What is right for --inputs, an .npy or .npz file; without it accuracy is "
            "agreement with the deployed model.",
            metavar="FILE",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help=f"What accuracy of --inputs is: {', '.join(METRICS)}; by default what the parity "
            "model was trained for.",
            metavar="NAME",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the groups.", min=0)] = 0,
) -> None:
    """Measure accuracy on queries, each member of each group unavailable in turn.

    The queries are the whole test set of a task, or --inputs. Prints A_a (of the deployed
    model), A_d (reconstructions alone, overall and per slot), A_o (overall, for 1, 5, 10 and 20 %
    of predictions unavailable) and how often reconstructions agree with the deployed model. The
    numbers go into the bundle's manifest as well, unless it holds those of a task and these are
    of another or of --inputs.
    """
    opened = open_bundle(bundle)
    training = opened.manifest.deployed_training
    trained_on = None if training is None else training.task
    name = task or trained_on
    if inputs is not None:
        if task is not None:
            raise UserError("give either --task or --inputs, not both")
        queries, right, judged = _own(opened, inputs, labels, metric)
        name = None
    elif labels is not None or metric is not None:
        raise UserError("--labels and --metric belong to --inputs; name the inputs, too")
    elif name is None:
        raise UserError(
            f"{bundle} does not say what task it is for; name it with --task, or give queries "
            "with --inputs"
        )
    else:
        known = find_task(name) if task is None else choose_task(task)
        test = known.load(data_dir).test
        queries, right, judged = test.inputs, test.labels, known.metric
    accuracy = measure_accuracy(opened, judged, queries, right, seed)
    if opened.manifest.inference_times is not None:
        Console().print(inference_table(opened))
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
                "inputs": None if inputs is None else str(inputs),
                "code": opened.manifest.code,
                "seed": seed,
                **msgspec.structs.asdict(accuracy),
            },
        )


def _own(
    bundle: Bundle, inputs: Path, labels: Path | None, metric: str | None
) -> tuple[NDArray[np.float32], Labels | None, str]:
    """The user's queries and labels, if there are any, and the metric to judge them by."""
    manifest = bundle.manifest
    shape, outputs = manifest.deployed.input.shape, manifest.deployed.output.shape
    if metric is None and manifest.parity_training is not None:
        trained_for = manifest.parity_training.recipe.get("metric")
        metric = trained_for if isinstance(trained_for, str) else None
    metric = choose_metric(metric, outputs)
    queries = load_inputs(inputs, shape, least=manifest.code.k if manifest.code else 1)
    check_varied(queries, f"inputs in {inputs}")
    if labels is None:
        return queries, None, metric
    return queries, load_labels(labels, metric, len(queries), outputs), metric
