"""Measuring a bundle's accuracy and its gates for people: a progress bar, then a table."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from tqdm import tqdm

from parity_models.evaluation import (
    LEVELS,
    GateResult,
    accuracy_table,
    evaluate,
    evaluate_gates,
    gate_table,
)
from parity_models.evaluation.accuracy import Progress, worthless
from parity_models.evaluation.calibration import calibrate_bundle, check_levels
from parity_models.evaluation.interval import too_few
from parity_models.evaluation.judged_queries import label_by_model
from parity_models.evaluation.predictor import Inputs
from parity_models.models.bundle import Accuracy, Bundle
from parity_models.tasks.metrics import constant_score
from parity_models.tasks.task import Labels

Agreements = Annotated[
    list[float] | None,
    typer.Option(
        "--agreement",
        help="Calibrate the gate for this level of agreement, too, besides "
        f"{', '.join(f'{level:g}' for level in LEVELS)}; may be given several times.",
        metavar="SHARE",
    ),
]


def measure_accuracy(
    bundle: Bundle,
    metric: str,
    inputs: Inputs,
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
    if warning := too_few(accuracy.queries):
        typer.echo(warning, err=True)
    least = constant_score(metric, labels)
    for stand_in in worthless(accuracy, least):
        coded = stand_in == "reconstruction"
        typer.echo(
            f"warning: {'reconstructions are' if coded else f'the {stand_in} is'} no better than "
            f"the same prediction for every query ({100 * least:.1f} %): train for longer, or "
            f"choose another {'--parity-network' if coded else '--network'}",
            err=True,
        )
    return accuracy


def calibrate_gates(
    bundle: Bundle,
    metric: str,
    inputs: Inputs,
    levels: Iterable[float],
    seed: int = 0,
    *,
    again: bool = False,
) -> Bundle:
    """Calibrate the gates of the bundle's stand-ins on held-out queries, and put them into it.

    Says which of the levels a stand-in cannot reach. With `again`, raises UserError if a stand-in
    would lose its gate.
    """
    wanted = check_levels({*LEVELS, *levels})
    with _bar("calibrating") as advance:
        bundle = calibrate_bundle(
            bundle, inputs, metric=metric, levels=wanted, seed=seed, again=again, progress=advance
        )
    for stand_in, calibration in bundle.manifest.calibration.items():
        reached = {each.level for each in calibration.levels}
        missed = ", ".join(f"{level:g}" for level in wanted if level not in reached)
        if not reached:
            typer.echo(
                f"gate of the {stand_in}: none, as {calibration.queries} queries show no agreement "
                f"of {min(wanted):g} or more; a server would let it answer every query. Calibrate "
                "with more queries, or train it for longer"
            )
        elif missed:
            typer.echo(
                f"gate of the {stand_in}: {calibration.queries} queries do not show an agreement "
                f"of {missed}; more of them may"
            )
    return bundle


def measure_gates(
    bundle: Bundle,
    metric: str,
    inputs: Inputs,
    labels: Labels | None,
    seed: int = 0,
) -> list[GateResult]:
    """Evaluate the gates of `bundle` on queries, in groups drawn by `seed`, and print them.

    Without labels the deployed model's predictions count as right.
    """
    if not bundle.manifest.calibration:
        return []
    said = metric if labels is not None else f"{metric} agreement"
    with _bar("evaluating gates") as advance:
        if labels is None:
            labels = label_by_model(bundle, inputs, metric)
        results = evaluate_gates(bundle, inputs, labels, metric=metric, seed=seed, progress=advance)
    Console().print(gate_table(results, said))
    return results


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    with tqdm(desc=what, unit="row", unit_scale=True) as bar:

        def advance(rows: int, total: int) -> None:
            bar.total = total
            bar.update(rows)

        yield advance
