"""The bundle with the chosen stand-in, with all that was measured of it."""

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
from parity_models.models.weights import WEIGHTS, has_weights
from parity_models.protection.finalists import Finalist
from parity_models.protection.preparing import Prepared
from parity_models.tasks.unlabelled import labels_from
from parity_models.training.lessons import envelope_of


def write_protected(
    deployed: Bundle, prepared: Prepared, chosen: Finalist, deployed_ms: float, out: Path
) -> Bundle:
    """Write the deployed model and the chosen stand-in to `out`, whole or not at all."""
    made, manifest = chosen.made, deployed.manifest
    model = deployed.stored(manifest.deployed)
    training = _training(prepared, chosen)
    run_ms = min(chosen.ms.items())[1]
    envelope = envelope_of(chosen.trainee.lessons, prepared.teaching.subject)
    files = {WEIGHTS: deployed.path / WEIGHTS} if has_weights(deployed) else {}
    if isinstance(made, NewModel):
        bundle = write_bundle(
            out,
            deployed=model,
            backup=made,
            imitated=manifest.imitated,
            name=manifest.name,
            deployed_training=manifest.deployed_training,
            backup_training=training,
            inference_times=InferenceTimes(deployed_ms, None, run_ms),
            calibration=chosen.calibration,
            envelope=envelope,
            files=files,
        )
    else:
        bundle = write_bundle(
            out,
            deployed=model,
            parity=made.models,
            coders=made.coders,
            backup=made.slot,
            code=chosen.candidate.code,
            imitated=manifest.imitated,
            name=manifest.name,
            deployed_training=manifest.deployed_training,
            parity_training=training,
            inference_times=InferenceTimes(deployed_ms, run_ms, chosen.slot_ms),
            calibration=chosen.calibration,
            envelope=envelope,
            files=files,
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
