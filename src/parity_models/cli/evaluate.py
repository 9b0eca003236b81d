"""parm evaluate: a bundle's accuracy when predictions are unavailable."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from parity_models.cli.accuracy import measure_accuracy, measure_gates
from parity_models.cli.code import AllowCode
from parity_models.cli.json_file import Json, write_json
from parity_models.cli.queries import BundleFolder, DataDir, GroupSeed, TestTask, task_of
from parity_models.errors import BundleError, UserError
from parity_models.evaluation.judged_queries import JudgedQueries, own_queries, test_set
from parity_models.evaluation.tables import inference_table
from parity_models.models.bundle import Accuracy, Bundle, open_bundle, with_accuracy
from parity_models.tasks import METRICS

OwnInputs = Annotated[
    Path | None,
    typer.Option(
        help="Queries of your own instead of a task's: an .npy or .npz file, or a folder of "
        ".npy files and images.",
        metavar="FILE",
    ),
]
OwnLabels = Annotated[
    Path | None,
    typer.Option(
        help="What is right for --inputs, an .npy or .npz file; without it accuracy is "
        "agreement with the deployed model.",
        metavar="FILE",
    ),
]
OwnMetric = Annotated[
    str | None,
    typer.Option(
        help=f"What accuracy of --inputs is: {', '.join(METRICS)}; by default what the parity "
        "model was trained for.",
        metavar="NAME",
    ),
]


def evaluate(
    bundle: BundleFolder,
    json: Json = None,
    task: TestTask = None,
    data_dir: DataDir = None,
    inputs: OwnInputs = None,
    labels: OwnLabels = None,
    metric: OwnMetric = None,
    seed: GroupSeed = 0,
    allow_code: AllowCode = None,
) -> None:
    """Measure accuracy on queries, each member of each group unavailable in turn.

    The queries are the whole test set of a task, or --inputs. Prints A_a (of the deployed
    model), A_d (reconstructions alone, overall and per slot), A_o (overall, for 1, 5, 10 and 20 %
    of predictions unavailable), how often reconstructions agree with the deployed model, and, for
    each level of agreement that the bundle's gates are calibrated for, how many queries stand-ins
    may answer and how right those answers are. The numbers, but for those of gates, go into the
    bundle's manifest as well, unless it holds those of a task and these are of another or of
    --inputs.
    """
    opened = open_bundle(bundle, allow_code or ())
    judged = _judged(opened, task, data_dir, inputs, labels, metric)
    asked = (opened, judged.metric, judged.inputs, judged.labels, seed)
    accuracy = measure_accuracy(*asked)
    gates = measure_gates(*asked)
    if opened.manifest.inference_times is not None:
        Console().print(inference_table(opened))
    _keep(opened, accuracy, judged.task)
    if json is not None:
        report = {
            "bundle": str(bundle),
            "task": judged.task,
            "inputs": None if inputs is None else str(inputs),
            "code": opened.manifest.code,
            "seed": seed,
            **msgspec.structs.asdict(accuracy),
            "gates": gates,
        }
        write_json(json, report)


def _judged(
    bundle: Bundle,
    task: str | None,
    data_dir: Path | None,
    inputs: Path | None,
    labels: Path | None,
    metric: str | None,
) -> JudgedQueries:
    """The queries that the command line names. Raises UserError where it contradicts itself."""
    if inputs is not None:
        if task is not None:
            raise UserError("give either --task or --inputs, not both")
        return own_queries(bundle, inputs, labels, metric)
    if labels is not None or metric is not None:
        raise UserError("--labels and --metric belong to --inputs; name the inputs, too")
    known = task_of(bundle, task)
    if known is None:
        raise UserError(
            f"{bundle.path} does not say what task it is for; name it with --task, or give queries "
            "with --inputs"
        )
    return test_set(bundle, known, data_dir)


def _keep(bundle: Bundle, accuracy: Accuracy, task: str | None) -> None:
    """Put the numbers into the manifest, unless they are not of the task that it is of."""
    training = bundle.manifest.deployed_training
    if training is None or training.task == task:
        try:
            with_accuracy(bundle, accuracy)
        except BundleError as error:
            typer.echo(f"note: the numbers are not in the manifest: {error}", err=True)
