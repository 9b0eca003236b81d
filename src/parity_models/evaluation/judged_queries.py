"""The queries that a bundle is judged on: a task's test set, or the user's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike, NDArray

from parity_models.errors import UserError
from parity_models.evaluation.accuracy import Progress
from parity_models.evaluation.predictor import Inputs, deployed_predictor, queries_of
from parity_models.models.bundle import Bundle
from parity_models.models.queries import Batch, as_batch, check_queries, read_batch, rows_in
from parity_models.tasks.labels import load_labels
from parity_models.tasks.task import Labels, Task
from parity_models.tasks.unlabelled import choose_metric, labels_from

GivenInputs = Path | str | ArrayLike | Mapping[str, ArrayLike]
"""Queries: a file or a folder, an array (n, ...), or an array for each input by name."""


@dataclass(frozen=True)
class JudgedQueries:
    """n queries, the right answers or None, and the metric that judges.

    `task` is whose test set they are; None for the user's own.
    """

    inputs: Batch
    labels: Labels | None
    metric: str
    task: str | None


def test_set(bundle: Bundle, task: Task, data_dir: Path | None) -> JudgedQueries:
    """The whole test set of a task, whose data are in `data_dir`, or None for the usual places.

    Raises DataError for data that are not there.
    """
    test = task.load(data_dir).test
    queries = as_batch(test.inputs, bundle.manifest.deployed.signature)
    return JudgedQueries(queries, test.labels, task.metric, task.name)


def own_queries(
    bundle: Bundle,
    inputs: GivenInputs,
    labels: Path | str | ArrayLike | None,
    metric: str | None,
) -> JudgedQueries:
    """The user's queries and labels; without a `metric`, that of `metric_for` judges them.

    Raises DataError for files that cannot be read or do not fit the bundle.
    """
    manifest = bundle.manifest
    chosen = metric_for(bundle, metric)
    least = manifest.code.k if manifest.code else 1
    queries = load_queries(inputs, bundle, least)
    right = None
    if labels is not None:
        right = load_labels(labels, chosen, rows_in(queries), judged_shape(bundle))
    return JudgedQueries(queries, right, chosen, None)


def metric_for(bundle: Bundle, metric: str | None) -> str:
    """The metric that the user named, else the one that a stand-in of `bundle` was trained for."""
    manifest = bundle.manifest
    for training in (manifest.parity_training, *manifest.backup_trainings):
        trained_for = None if training is None else training.recipe.get("metric")
        if metric is None and isinstance(trained_for, str):
            metric = trained_for
    return choose_metric(metric, judged_shape(bundle))


def judged_shape(bundle: Bundle) -> tuple[int, ...]:
    """The shape of the output that is judged: the one that stand-ins imitate, or the only one.

    Raises UserError where there is none of fixed shape.
    """
    output = bundle.manifest.imitated_output
    fixed = None if output is None else output.fixed
    if fixed is None:
        outputs = bundle.manifest.deployed.signature.outputs
        raise UserError(
            f"{bundle.path} has no output of fixed shape that is judged: "
            f"{', '.join(map(str, outputs))}"
        )
    return fixed.shape


def label_by_model(
    bundle: Bundle, inputs: Inputs, metric: str, *, progress: Progress | None = None
) -> NDArray[Any]:
    """Return the labels that the deployed model's own predictions make right."""
    queries = queries_of(bundle, inputs)

    def on_rows(rows: int) -> None:
        if progress is not None:
            progress(rows, rows_in(queries))

    return labels_from(deployed_predictor(bundle, on_rows=on_rows)(queries), metric)


def load_queries(inputs: GivenInputs, bundle: Bundle, least: int = 1) -> Batch:
    """Return the queries in a file or folder, or in arrays: `least` or more, which differ.

    Raises DataError for queries that are not the deployed model's.
    """
    signature = bundle.manifest.deployed.signature
    if isinstance(inputs, str | Path):
        return read_batch(Path(inputs), signature, least)
    queries = as_batch(inputs, signature)
    check_queries(queries, "inputs", least)
    return queries
