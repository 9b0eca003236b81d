"""parm evaluate: a bundle's accuracy when predictions are unavailable."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from parity_models.cli.accuracy import rows_bar
from parity_models.cli.code import AllowCode
from parity_models.cli.json_file import Json, write_json
from parity_models.cli.queries import BundleFolder, DataDir, GroupSeed, TestTask
from parity_models.evaluation.judging import evaluate as evaluate_bundle
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
    with rows_bar("evaluating") as progress:
        found = evaluate_bundle(
            bundle,
            inputs,
            labels,
            task=task,
            data_dir=data_dir,
            metric=metric,
            seed=seed,
            allow_code=allow_code or (),
            progress=progress,
        )
    found.show()
    if json is not None:
        report = {
            "bundle": str(bundle),
            "task": found.task,
            "inputs": None if inputs is None else str(inputs),
            "code": found.bundle.manifest.code,
            "seed": seed,
            **msgspec.structs.asdict(found.accuracy),
            "gates": found.gates,
        }
        write_json(json, report)
