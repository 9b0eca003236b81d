"""Which queries stand-ins learn from, and which are held out to choose, calibrate and report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.models.bundle import Bundle
from parity_models.models.queries import padded, read_batch, sizes_in
from parity_models.models.signature import Signature
from parity_models.tasks import Split, choose_task, find_task, is_ours
from parity_models.tasks.task import Labels
from parity_models.tasks.unlabelled import choose_metric
from parity_models.training.subject import Subject, subject_of

HELD_OUT = 10
"""One of so many of the user's inputs is not trained on, to report accuracy on; and as many, to
calibrate gates with."""


@dataclass(frozen=True)
class Queries:
    """What to train on, validate with, calibrate with, and report on; labels only where there are
    any. Queries are (n, *query_shape), or rows of one kind of the model's signature.

    `metric` None: what suits the predictions. `flips`: one turned left to right is as good a query.
    """

    train: NDArray[Any]
    validation: Split | None
    calibration: NDArray[Any]
    test: NDArray[Any]
    test_labels: Labels | None
    metric: str | None
    flips: bool


def find_queries(
    bundle: Bundle,
    task: str | None,
    inputs: Path | None,
    data_dir: Path | None,
    metric: str | None,
    flips: bool,
    k: int,
) -> Queries:
    """The user's queries at `inputs`, or those of `task`, or of the one the model was trained on.

    Of the user's, some are held out to calibrate with and to report on. Raises UserError if there
    are none, both, or too few for groups of k.
    """
    subject, training = subject_of(bundle), bundle.manifest.deployed_training
    shape = subject.output.shape
    if inputs is not None and task is not None:
        raise UserError("give either --task or --inputs, not both")
    if inputs is not None:
        found = _load(inputs, subject, flips, least=3 * k)
        order = np.random.default_rng(1).permutation(len(found))
        tenth = len(found) // HELD_OUT
        tested = max(k, tenth)
        rest, calibrated, test = np.split(order, [len(found) - tested - tenth, len(found) - tested])
        if metric is None and training is not None and is_ours(training.task):
            metric = find_task(training.task).metric
        choose_metric(metric, shape)
        return Queries(found[rest], None, found[calibrated], found[test], None, metric, flips)
    if not subject.plain:
        raise UserError(
            f"the model takes {subject.signature}; give its queries with --inputs, an .npz file "
            "with an array for each input"
        )
    if task is not None:
        chosen_task = choose_task(task)
    elif training is not None:
        chosen_task = find_task(training.task)
    else:
        raise UserError(
            "nothing says what queries the deployed model gets; give some with --inputs, an .npy "
            "file or a folder, labels are not needed"
        )
    data = chosen_task.load(data_dir)
    validation, calibration = data.validation.part(k)
    return Queries(
        data.train.inputs,
        validation,
        calibration,
        data.test.inputs,
        data.test.labels,
        choose_metric(metric or chosen_task.metric, shape),
        flips or chosen_task.flips,
    )


def _load(path: Path, subject: Subject, flips: bool, least: int) -> NDArray[Any]:
    if flips and not subject.plain:
        raise UserError("--flips is for images; the model takes other queries")
    return load_rows(path, subject.signature, least)


def load_rows(path: Path, signature: Signature, least: int = 1) -> NDArray[Any]:
    """Return the queries in a file as rows of one kind (see models.tensor.Layout)."""
    batch = read_batch(path, signature, least)
    sizes = sizes_in(batch, signature.inputs)
    return padded(batch, signature, [int(sizes[axis].max()) for axis in signature.axes])
