"""parm evaluate: a bundle's accuracy when predictions are unavailable."""

from pathlib import Path
from typing import Annotated

import msgspec

from parity_models.bundle.bundle import open_bundle
from parity_models.cli.common import AllowCode, BundleFolder, Json, write_json
from parity_models.evaluation.judging import evaluate as evaluate_bundle
from parity_models.options import Option, option
from parity_models.progress import progress_bars
from parity_models.tasks.metrics import METRICS


def evaluate(
    bundle: BundleFolder,
    *,
    inputs: Annotated[Path, Option("Queries: an .npy or .npz file.", metavar="FILE")],
    labels: Path | None = option(
        None,
        "The right answers to --inputs, .npy or .npz; by default the deployed model's.",
        metavar="FILE",
    ),
    metric: str | None = option(
        None,
        f"The measure of accuracy: {', '.join(METRICS)}; by default the one used in training.",
        metavar="NAME",
    ),
    json: Json = None,
    allow_code: AllowCode = None,
) -> None:
    """Measure accuracy, with each query in turn as the unavailable one of its group.

    Prints A_a (of the deployed model), A_d (of reconstructions alone), A_o (overall, for 1, 5, 10
    and 20 % of predictions unavailable), the agreement of reconstructions with the deployed model,
    and, for each level of agreement that the bundle is calibrated for, the share of queries that
    stand-ins may answer and the accuracy of those answers. All numbers except those of gates also
    go into the bundle's manifest.
    """
    with progress_bars() as bars:
        found = evaluate_bundle(
            open_bundle(bundle, allow_code or ()),
            inputs,
            labels,
            metric=metric,
            progress=bars.on_progress,
        )
    found.show()
    report = {
        "bundle": str(bundle),
        "inputs": str(inputs),
        "code": found.bundle.manifest.code,
        **msgspec.structs.asdict(found.accuracy),
        "gates": found.gates,
    }
    write_json(json, report)
