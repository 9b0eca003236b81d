"""The bundle with the chosen stand-ins, with all that was measured of them."""

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import msgspec

from parity_models.evaluation import evaluate
from parity_models.models.bundle import (
    Accuracy,
    Bundle,
    InferenceTimes,
    NewModel,
    Training,
    with_accuracy,
    write_bundle,
)
from parity_models.models.gate import Calibration, StandIn
from parity_models.models.weights import WEIGHTS, has_weights
from parity_models.protection.finalists import Finalist
from parity_models.protection.preparing import Prepared
from parity_models.tasks.unlabelled import labels_from
from parity_models.training.lessons import envelope_of
from parity_models.training.parity import ParityModels
from parity_models.training.ranked import KnownBackup, in_order


def write_protected(
    deployed: Bundle,
    prepared: Prepared,
    chosen: Sequence[Finalist],
    times: InferenceTimes,
    out: Path,
) -> Bundle:
    """Write the deployed model and what was chosen, backups or a parity model or one of each, to
    `out`, whole or not at all; `times` are those of the deployed model.

    Without a backup among them, the parity model's slot is one, if it may answer.
    """
    manifest = deployed.manifest
    coded = next((each for each in chosen if each.candidate.code is not None), None)
    models = ParityModels([], {}, None)
    calibration: dict[StandIn, Calibration] = {}
    timed = [
        (
            each.ms[1],
            KnownBackup(each.made, _training(prepared, each), each.calibration.get("backup")),
        )
        for each in chosen
        if isinstance(each.made, NewModel)
    ]
    if coded is not None and isinstance(coded.made, ParityModels):
        models = coded.made
        calibration = {
            name: gate for name, gate in coded.calibration.items() if name == "reconstruction"
        }
        if not timed and coded.slot is not None and coded.slot_ms is not None:
            timed = [
                (coded.slot_ms[1], KnownBackup(coded.slot, None, coded.calibration.get("backup")))
            ]
    timed.sort(key=itemgetter(0))
    times = msgspec.structs.replace(
        times,
        parity=None if coded is None else coded.ms[1],
        backups=tuple(ms for ms, _ in timed),
    )
    known = in_order([backup for _, backup in timed], times)
    # The narrower envelope: that of one which did not learn from mirrored queries, if there is one.
    lessons = min((each.trainee.lessons for each in chosen), key=lambda each: each.mirrored)
    bundle = write_bundle(
        out,
        deployed=deployed.stored(manifest.deployed),
        parity=models.models,
        coders=models.coders,
        backups=known.backups,
        code=None if coded is None else coded.candidate.code,
        imitated=manifest.imitated,
        name=manifest.name,
        deployed_training=manifest.deployed_training,
        parity_training=None if coded is None else _training(prepared, coded),
        backup_trainings=known.trainings,
        inference_times=known.times,
        calibration=calibration | known.calibration,
        envelope=envelope_of(lessons, prepared.teaching.subject),
        files={WEIGHTS: deployed.path / WEIGHTS} if has_weights(deployed) else {},
    )
    return with_accuracy(bundle, _accuracy(bundle, prepared))


def _training(prepared: Prepared, chosen: Finalist) -> Training:
    lessons = chosen.trainee.lessons
    return Training(
        task=prepared.task,
        inputs=len(lessons.inputs),
        inputs_sha256=prepared.inputs_sha256,
        seed=prepared.teaching.seed,
        epochs=chosen.trainee.epochs,
        seconds=round(chosen.trainee.seconds, 2),
        device=str(lessons.inputs.device),
        recipe=chosen.trainee.recipe,
    )


def _accuracy(bundle: Bundle, prepared: Prepared) -> Accuracy:
    """That on the test queries; without labels, agreement with the model."""
    queries = prepared.measured
    labels, said = queries.labels, queries.metric
    if labels is None:
        labels = labels_from(queries.test_predictions, queries.metric)
        said = f"{queries.metric} agreement"
    accuracy = evaluate(bundle, queries.test, labels, metric=queries.metric)
    return msgspec.structs.replace(accuracy, metric=said)
