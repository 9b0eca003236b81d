"""Which queries a bundle is judged on: a task's test set, or the user's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from parity_models.errors import UserError
from parity_models.models.bundle import Bundle
from parity_models.models.named_inputs import load_named
from parity_models.tasks.task import Labels, Task
from parity_models.tasks.unlabelled import choose_metric
from parity_models.tasks.user_data import check_varied, load_inputs, load_labels


@dataclass(frozen=True)
class JudgedQueries:
    """Queries (n, *query shape), the right answers or None, and the metric that judges.

    `task` is whose test set they are; None for the user's own.
    """

    inputs: NDArray[Any]
    labels: Labels | None
    metric: str
    task: str | None


def test_set(task: Task, data_dir: Path | None) -> JudgedQueries:
    """The whole test set of a task, whose data are in `data_dir`, or None for the usual places.

    Raises DataError for data that are not there.
    """
    test = task.load(data_dir).test
    return JudgedQueries(test.inputs, test.labels, task.metric, task.name)


def own_queries(
    bundle: Bundle, inputs: Path, labels: Path | None, metric: str | None
) -> JudgedQueries:
    """The user's queries and labels; without a `metric`, that of `metric_for` judges them.

    Raises DataError for files that cannot be read or do not fit the bundle.
    """
    manifest = bundle.manifest
    chosen = metric_for(bundle, metric)
    least = manifest.code.k if manifest.code else 1
    queries = load_rows(inputs, bundle, least=least)
    right = None
    if labels is not None:
        right = load_labels(labels, chosen, len(queries), judged_shape(bundle))
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


def load_rows(path: Path, bundle: Bundle, least: int = 1) -> NDArray[Any]:
    """The queries in a file or a folder, `least` or more that differ, as rows of one kind of the
    deployed model's.

    Floating-point queries of one input are read as `load_inputs` does. Of others, the file holds an
    array for each input (`models.named_inputs`); those of unequal length are padded to one. Raises
    DataError for anything else.
    """
    signature = bundle.manifest.deployed.signature
    if signature.is_plain:
        rows = load_inputs(path, signature.input.shape, least=least)
    else:
        rows = load_named(path, signature, least)
    check_varied(rows, f"inputs in {path}")
    return rows
