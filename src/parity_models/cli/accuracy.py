"""Measuring a bundle's accuracy for people: a progress bar, then a table."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from tqdm import tqdm

from parity_models.evaluation import accuracy_table, evaluate
from parity_models.evaluation.accuracy import Progress
from parity_models.evaluation.unlabelled import label_by_model
from parity_models.models.bundle import Accuracy, Bundle
from parity_models.tasks.metrics import constant_score
from parity_models.tasks.task import Labels


def measure_accuracy(
    bundle: Bundle,
    metric: str,
    inputs: NDArray[np.float32],
    labels: Labels | None,
    seed: int = 0,
) -> Accuracy:
    """Evaluate `bundle` on queries, in groups drawn by `seed`, and print it.

    Without labels the deployed model's predictions count as right: accuracy is agreement with
    it.
    """
    said = metric
    if labels is None:
        said = f"{metric} agreement"
        with _bar("predicting") as advance:
            labels = label_by_model(bundle, inputs, metric, progress=advance)
    with _bar("evaluating") as advance:
        accuracy = evaluate(bundle, inputs, labels, metric=metric, seed=seed, progress=advance)
    accuracy = msgspec.structs.replace(accuracy, metric=said)
    Console().print(accuracy_table(bundle, accuracy))
    least = constant_score(metric, labels)
    if accuracy.degraded_accuracy is not None and accuracy.degraded_accuracy <= least < 1:
        typer.echo(
            "warning: reconstructions are no better than one prediction for all queries would be "
            f"({100 * least:.1f} %): train for longer, or choose another --parity-network",
            err=True,
        )
    return accuracy


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    with tqdm(desc=what, unit="row", unit_scale=True) as bar:

        def advance(rows: int, total: int) -> None:
            bar.total = total
            bar.update(rows)

        yield advance
