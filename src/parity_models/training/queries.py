"""The queries of a training: those that stand-ins learn from, and those that are held out."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.errors import OptionError, UserError
from parity_models.evaluation.judging import GivenInputs, load_queries
from parity_models.models.queries import as_batch, check_queries, padded, sizes_in
from parity_models.models.signature import tensors_in
from parity_models.tasks import choose_task, find_task, is_ours
from parity_models.tasks.metrics import choose_metric
from parity_models.tasks.task import Labels
from parity_models.training.teacher import Teacher

Array = NDArray[Any]

HELD_OUT = 10
"""One of so many of the user's inputs is held out for each purpose."""


@dataclass(frozen=True)
class Queries:
    """Queries to learn from, and others that choose the best epoch, calibrate gates and test.

    They are (n, *query_shape), or rows of one kind of the model's signature; there may be none for
    calibration and tests. Without labels the deployed model's predictions count as right. `metric`
    None is the one that suits the predictions. With `hflip` a query turned left to right is as good
    a query.
    """

    train: Array
    validation: Array
    validation_labels: Labels | None = None
    calibration: Array | None = None
    test: Array | None = None
    test_labels: Labels | None = None
    metric: str | None = None
    hflip: bool = False

    @classmethod
    def of(cls, inputs: Array, k: int = 1, **fields: Any) -> "Queries":
        """Hold out some of the `inputs`, k or more, for validation, and none for the rest."""
        order = np.random.default_rng(0).permutation(len(inputs))
        rest, drawn = np.split(order, [len(inputs) - max(k, len(inputs) // HELD_OUT)])
        return cls(inputs[rest], inputs[drawn], **fields)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the queries to learn from."""
        content = hashlib.sha256()
        for each in tensors_in(self.train):
            content.update(np.ascontiguousarray(each).data)
        return content.hexdigest()

    def check(self, teacher: Teacher, least: int) -> None:
        """Raise DataError unless there are `least` or more finite queries that differ, both for
        training and for validation, and UserError for a metric that does not fit."""
        choose_metric(self.metric, teacher.output.shape)
        for inputs, what in ((self.train, "training"), (self.validation, "validation")):
            batch = as_batch(inputs, teacher.signature, f"the {what} inputs")
            check_queries(batch, f"{what} inputs", least)


def find_queries(
    teacher: Teacher,
    inputs: GivenInputs | None,
    *,
    task: str | None = None,
    data_dir: Path | str | None = None,
    metric: str | None = None,
    hflip: bool = False,
    k: int = 1,
    least: int = 1,
) -> Queries:
    """Return the user's `inputs`, or those of `task`, or of the one the model was trained on.

    Of the user's, a tenth each is held out for validation, calibration and tests. Raises UserError
    if there are none, or both, and DataError if they are fewer than `least` or too few for groups
    of k.
    """
    training = teacher.bundle.manifest.deployed_training
    shape = teacher.output.shape
    if inputs is not None:
        if task is not None:
            raise UserError("give either a task or inputs, not both")
        if hflip and not teacher.plain:
            raise OptionError("--hflip is for images; the model takes other queries")
        if metric is None and training is not None and is_ours(training.task):
            metric = find_task(training.task).metric
        choose_metric(metric, shape)
        found = rows_of(teacher, inputs, least=max(least, 3 * k))
        order = np.random.default_rng(1).permutation(len(found))
        tenth = len(found) // HELD_OUT
        tested = max(k, tenth)
        rest, calibrated, test = np.split(order, [len(found) - tested - tenth, len(found) - tested])
        return Queries.of(
            found[rest],
            k,
            calibration=found[calibrated],
            test=found[test],
            metric=metric,
            hflip=hflip,
        )
    if not teacher.plain:
        raise UserError(
            f"the model takes {teacher.signature}; give its queries as inputs, an array for each "
            "input, in Python or in an .npz file"
        )
    if task is not None:
        chosen = choose_task(task)
    elif training is not None:
        chosen = find_task(training.task)
    else:
        raise UserError(
            "nothing says what queries the deployed model gets; give some as inputs, an array, an "
            ".npy file or a folder; labels are not needed"
        )
    data = chosen.load(None if data_dir is None else Path(data_dir))
    validation, calibration = data.validation.part(k)
    return Queries(
        data.train.inputs,
        validation.inputs,
        validation.labels,
        calibration,
        data.test.inputs,
        data.test.labels,
        choose_metric(metric or chosen.metric, shape),
        hflip or chosen.flips,
    )


def rows_of(teacher: Teacher, inputs: GivenInputs, least: int) -> Array:
    """Return queries as rows of one kind, those of unequal length padded to one."""
    batch, signature = load_queries(inputs, teacher.bundle, least), teacher.signature
    sizes = sizes_in(batch, signature.inputs)
    return padded(batch, signature, [int(sizes[axis].max()) for axis in signature.axes])
