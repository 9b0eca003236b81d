"""Measuring a bundle's accuracy and its gates for people: a progress bar, then a table."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import msgspec
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from tqdm import tqdm

from parity_models.errors import UserError
from parity_models.evaluation import (
    LEVELS,
    GateResult,
    accuracy_table,
    calibrate,
    evaluate,
    evaluate_gates,
    gate_table,
)
from parity_models.evaluation.accuracy import Progress
from parity_models.evaluation.calibration import check_levels
from parity_models.evaluation.interval import too_few
from parity_models.evaluation.unlabelled import label_by_model
from parity_models.models.bundle import Accuracy, Bundle, with_calibration
from parity_models.models.gate import Calibration, StandIn
from parity_models.scheduling import BACKUPS
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
    if warning := too_few(accuracy.queries):
        typer.echo(warning, err=True)
    for warning in _worthless(accuracy, constant_score(metric, labels)):
        typer.echo(warning, err=True)
    return accuracy


def _worthless(accuracy: Accuracy, least: float) -> Iterator[str]:
    """Warnings of stand-ins that score no better than one prediction for all does: `least`."""
    judged = [
        ("reconstructions are", accuracy.degraded_accuracy, "--parity-network"),
        *(
            (f"the {role} is", score, "--network")
            for role, score in zip(BACKUPS, accuracy.backup_accuracies, strict=False)
        ),
    ]
    for said, score, option in judged:
        if score is not None and score <= least < 1:
            yield (
                f"warning: {said} no better than the same prediction for every query "
                f"({100 * least:.1f} %): train for longer, or choose another {option}"
            )


def calibrate_gates(
    bundle: Bundle,
    metric: str,
    inputs: NDArray[np.float32],
    levels: Iterable[float],
    seed: int = 0,
    *,
    again: bool = False,
) -> Bundle:
    """Calibrate the gates of the bundle's stand-ins on held-out queries, and put them into it.

    Says which of the levels a stand-in cannot reach. With `again`, raises UserError, and leaves the
    bundle as it is, if a stand-in with a gate would have none afterwards, and so answer everything.
    """
    wanted = check_levels({*LEVELS, *levels})
    with _bar("calibrating") as advance:
        found = calibrate(bundle, inputs, metric=metric, levels=wanted, seed=seed, progress=advance)
    if again:
        _check_kept(bundle, found)
    for stand_in, calibration in found.items():
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
    return with_calibration(bundle, found)


def _check_kept(bundle: Bundle, found: Mapping[StandIn, Calibration]) -> None:
    for stand_in, before in bundle.manifest.calibration.items():
        now = found.get(stand_in)
        if before.levels and now is not None and not now.levels:
            raise UserError(
                f"{now.queries} queries show no level of agreement of the {stand_in}, which would "
                "then answer without a gate; the bundle keeps the gates that it has. Give more "
                "held-out queries; if these are some hundred, train the stand-in again"
            )


def measure_gates(
    bundle: Bundle,
    metric: str,
    inputs: NDArray[np.float32],
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
