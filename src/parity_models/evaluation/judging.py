"""Judging a bundle: its accuracy when predictions are unavailable, and the gates of stand-ins."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from numpy.typing import ArrayLike

from parity_models.errors import UserError
from parity_models.evaluation import accuracy as accuracies
from parity_models.evaluation import calibration as calibrations
from parity_models.evaluation.accuracy import Progress
from parity_models.evaluation.calibration import LEVELS, check_levels
from parity_models.evaluation.gates import GateResult, evaluate_gates
from parity_models.evaluation.interval import too_few
from parity_models.evaluation.judged_queries import (
    GivenInputs,
    JudgedQueries,
    label_by_model,
    load_queries,
    metric_for,
    own_queries,
    test_set,
)
from parity_models.evaluation.tables import accuracy_table, gate_table, inference_table
from parity_models.models.bundle import (
    Accuracy,
    Bundle,
    open_bundle,
    with_accuracy,
    with_calibration,
)
from parity_models.models.queries import as_batch
from parity_models.printed import Printed
from parity_models.tasks import choose_task, find_task, is_ours
from parity_models.tasks.metrics import constant_score

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Evaluation(Printed):
    """How right a bundle's answers are, on the queries of a `task` or, where it is None, others.

    `gates` are the results of each calibrated stand-in by level, `notes` sentences on what may be
    wrong.
    """

    bundle: Bundle
    accuracy: Accuracy
    gates: tuple[GateResult, ...]
    task: str | None
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> "Sequence[RenderableType]":
        """Tables of accuracy, gates and times, and notes."""
        parts: list[RenderableType] = [accuracy_table(self.bundle, self.accuracy)]
        if self.gates:
            parts.append(gate_table(self.gates, self.accuracy.metric))
        if self.bundle.manifest.inference_times is not None:
            parts.append(inference_table(self.bundle))
        return [*parts, *self.notes]


def evaluate(
    bundle: Bundle | Path | str,
    inputs: GivenInputs | None = None,
    labels: Path | str | ArrayLike | None = None,
    /,
    *,
    task: str | None = None,
    data_dir: Path | str | None = None,
    metric: str | None = None,
    seed: int = 0,
    allow_code: Collection[str] = (),
    progress: Progress | None = None,
) -> Evaluation:
    """Measure accuracy on queries, each member of each coding group unavailable in turn.

    Args:
        bundle: The bundle, or its folder.
        inputs: Queries: a file or a folder, an array (n, *query_shape), or an array for each input
            by name. By default the whole test set of the task.
        labels: The right answers: a file or an array (n, ...). Without them accuracy is agreement
            with the deployed model.
        task: A task, or package.module:Class for one's own; by default the one that the deployed
            model was trained on.
        data_dir: The folder of the task's data.
        metric: The measure of accuracy of `inputs`; by default what stand-ins were trained for.
        seed: Draws the coding groups.
        allow_code: Encoders and decoders of one's own that the bundle may name.
        progress: Called with the rows that were just run, and how many there are in all.

    Returns:
        Accuracies A_a, A_d and A_o, and the results of gates. Accuracies go into the bundle's
        manifest, unless it holds those of a task and these are of other queries.

    Raises:
        DataError: For files and arrays that do not fit the bundle.
        UserError: For arguments that contradict each other.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, allow_code)
    judged = _judged(opened, inputs, labels, task, data_dir, metric)
    metric, right = judged.metric, judged.labels
    said = metric if right is not None else f"{metric} agreement"
    if right is None:
        right = label_by_model(opened, judged.inputs, metric)
    asked: dict[str, Any] = {"metric": metric, "seed": seed, "progress": progress}
    found = accuracies.evaluate(opened, judged.inputs, right, **asked)
    found = msgspec.structs.replace(found, metric=said)
    results = evaluate_gates(opened, judged.inputs, right, metric=metric, seed=seed)
    notes = [sentence] if (sentence := too_few(found.queries)) else []
    notes += [
        f"warning: the {each} is no better than the same prediction for every query: train for "
        "longer, or choose another network"
        for each in accuracies.worthless(found, constant_score(metric, right))
    ]
    training = opened.manifest.deployed_training
    if training is None or training.task == judged.task:
        opened = with_accuracy(opened, found)
    return Evaluation(opened, found, tuple(results), judged.task, tuple(notes))


def _judged(
    bundle: Bundle,
    inputs: GivenInputs | None,
    labels: Path | str | ArrayLike | None,
    task: str | None,
    data_dir: Path | str | None,
    metric: str | None,
) -> JudgedQueries:
    if inputs is not None:
        if task is not None:
            raise UserError("give either a task or inputs, not both")
        return own_queries(bundle, inputs, labels, metric)
    if labels is not None or metric is not None:
        raise UserError("labels and a metric belong to inputs; give these, too")
    training = bundle.manifest.deployed_training
    if task is None and training is None:
        raise UserError(
            f"{bundle.path} does not say what task it is for; name one with --task, or give "
            "queries with --inputs"
        )
    chosen = choose_task(task) if task is not None else find_task(training.task if training else "")
    return test_set(bundle, chosen, None if data_dir is None else Path(data_dir))


def calibrate(
    bundle: Bundle | Path | str,
    inputs: GivenInputs | None = None,
    /,
    *,
    task: str | None = None,
    data_dir: Path | str | None = None,
    metric: str | None = None,
    agreement: Collection[float] = (),
    seed: int = 0,
    allow_code: Collection[str] = (),
    progress: Progress | None = None,
) -> Bundle:
    """Calibrate the gates of a bundle's stand-ins, and write them into it.

    For each level of agreement the gate is how sure a stand-in has to be of an output so that, of
    the outputs that it is so sure of, at least that share is the deployed model's. `parity`,
    `backup` and `protect` do the same.

    Args:
        bundle: The bundle, or its folder.
        inputs: Held-out queries like those that will be served, without labels: a file or a folder,
            or arrays. A thousand or more are needed for a level of 0.99. By default most of the
            validation set of the task that the deployed model was trained on.
        task: The task whose validation set to use, or package.module:Class.
        data_dir: The folder of the task's data.
        metric: The measure that tells whether outputs agree; by default what stand-ins were trained
            for.
        agreement: Levels in addition to the usual ones.
        seed: Draws the coding groups.
        allow_code: Encoders and decoders of one's own that the bundle may name.
        progress: Called with the rows that were just run, and how many there are in all.

    Returns:
        The bundle with its gates.

    Raises:
        DataError: For queries that do not fit the bundle.
        UserError: For a bundle without stand-ins, for arguments that contradict each other, and if
            a stand-in would lose its gate; the bundle stays as it is then.
        BundleError: If the bundle was replaced meanwhile or cannot be written.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, allow_code)
    manifest = opened.manifest
    if manifest.code is None and not manifest.backups:
        raise UserError(
            f"{opened.path} has no stand-in to calibrate; make one with: parm parity --from "
            f"{opened.path} --out BUNDLE"
        )
    if inputs is not None and task is not None:
        raise UserError("give either a task or inputs, not both")
    if inputs is not None:
        queries = load_queries(inputs, opened)
    else:
        training = manifest.deployed_training
        if task is None and (training is None or not is_ours(training.task)):
            raise UserError(
                f"{opened.path} does not say what task it is for; give held-out queries with "
                "--inputs, labels are not needed, or name its task with --task"
            )
        known = choose_task(task) if task else find_task(training.task if training else "")
        k = 1 if manifest.code is None else manifest.code.k
        folder = None if data_dir is None else Path(data_dir)
        _, rest = known.load(folder).validation.part(k)
        queries = as_batch(rest, manifest.deployed.signature)
        metric = metric or known.metric
    found = calibrations.calibrate(
        opened,
        queries,
        metric=metric_for(opened, metric),
        levels=check_levels({*LEVELS, *agreement}),
        seed=seed,
        progress=progress,
    )
    for stand_in, gate in manifest.calibration.items():
        now = found.get(stand_in)
        if gate.levels and now is not None and not now.levels:
            raise UserError(
                f"{now.queries} queries show no level of agreement of the {stand_in}, which would "
                "then answer without a gate; the bundle keeps the gates that it has. Give more "
                "held-out queries; if these are some hundred, train the stand-in again"
            )
    return with_calibration(opened, found)
