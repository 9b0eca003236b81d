"""Measuring a bundle's accuracy for people: a progress bar, then a table."""

from rich.console import Console
from tqdm import tqdm

from parity_models.evaluation import accuracy_table, evaluate
from parity_models.models.bundle import Accuracy, Bundle
from parity_models.tasks import Split, Task


def measure_accuracy(bundle: Bundle, task: Task, test: Split, seed: int = 0) -> Accuracy:
    """Evaluate `bundle` on the test set of `task`, in groups drawn by `seed`, and print it."""
    with tqdm(desc="evaluating", unit="row", unit_scale=True) as bar:

        def advance(rows: int, total: int) -> None:
            bar.total = total
            bar.update(rows)

        accuracy = evaluate(
            bundle, test.inputs, test.labels, metric=task.metric, seed=seed, progress=advance
        )
    Console().print(accuracy_table(bundle, accuracy))
    return accuracy
