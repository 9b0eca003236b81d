"""Putting trained stand-ins into a bundle: ordered, timed, calibrated, measured, written once."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from parity_models.codes import CodeSpec
from parity_models.errors import BundleError, TrainingError
from parity_models.evaluation.calibration import calibrate_gates
from parity_models.evaluation.judging import Evaluation, judge
from parity_models.evaluation.outputs import Outputs
from parity_models.models.bundle import (
    Bundle,
    InferenceTimes,
    NewModel,
    Training,
    check_replaceable,
    write_bundle,
)
from parity_models.models.envelope import Envelope
from parity_models.models.gate import Calibration, StandIn
from parity_models.models.inference_time import measure_models
from parity_models.models.signature import Sizes
from parity_models.roles import BACKUPS
from parity_models.training.callbacks import OnMeasured
from parity_models.training.candidates import Exported
from parity_models.training.teacher import Queries
from parity_models.writable import why_not_writable


@dataclass(frozen=True)
class BackupPart:
    """A backup to be put into a bundle, its training, and its gate, if it was calibrated."""

    model: NewModel
    training: Training | None = None
    gate: Calibration | None = None


@dataclass(frozen=True)
class ParityPart:
    """The parity models of a code to be put into a bundle, their training, and their gate."""

    code: CodeSpec | None = None
    models: Exported = field(default_factory=Exported)
    training: Training | None = None
    gate: Calibration | None = None


def check_place(out: Path) -> None:
    """Raise BundleError if a bundle cannot be written to `out`."""
    check_replaceable(out)
    if why := why_not_writable(out.parent):
        raise BundleError(f"{why}; choose another folder")


def check_room(bundle: Bundle) -> None:
    """Raise TrainingError if the bundle has as many backups as it may."""
    if len(bundle.manifest.backups) == len(BACKUPS):
        raise TrainingError(
            f"{bundle.path} has {len(BACKUPS)} backups, and may not have more; leave out --keep to "
            "put the new one in their place"
        )


def parity_of(bundle: Bundle) -> ParityPart:
    """Return the parity models of a bundle, to be put into another."""
    manifest = bundle.manifest
    models = Exported(
        [bundle.stored(parity) for parity in manifest.parity],
        {name: bundle.stored(coder) for name, coder in manifest.coders.items()},
    )
    gate = manifest.calibration.get("reconstruction")
    return ParityPart(manifest.code, models, manifest.parity_training, gate)


def backups_of(bundle: Bundle) -> list[BackupPart]:
    """Return the backups of a bundle, to be put into another."""
    manifest = bundle.manifest
    trainings = manifest.backup_trainings or [None] * len(manifest.backups)
    return [
        BackupPart(bundle.stored(backup), training, manifest.calibration.get(role))
        for (role, backup), training in zip(manifest.backup_roles.items(), trainings, strict=True)
    ]


def contents_of(
    deployed: Bundle,
    parity: ParityPart,
    backups: Sequence[BackupPart],
    envelope: Envelope,
    *,
    sizes: Sizes | None = None,
    times: InferenceTimes | None = None,
) -> dict[str, Any]:
    """Return the arguments of `write_bundle` for a deployed model and stand-ins.

    The fastest backup comes first. Where no `times` are given, with those of the backups in their
    order here, models are timed for queries of these `sizes`.
    """
    manifest, model = deployed.manifest, deployed.stored(deployed.manifest.deployed)
    times = times or measure_models(
        model, parity.models.parity, [each.model for each in backups], sizes
    )
    pairs = sorted(zip(times.backups, backups, strict=True), key=lambda pair: pair[0])
    gates: dict[StandIn, Calibration] = {}
    if parity.gate is not None:
        gates["reconstruction"] = parity.gate
    for role, (_, backup) in zip(BACKUPS, pairs, strict=False):
        if backup.gate is not None:
            gates[role] = backup.gate
    return {
        "deployed": model,
        "parity": parity.models.parity,
        "coders": parity.models.coders,
        "backups": [each.model for _, each in pairs],
        "code": parity.code,
        "imitated": manifest.imitated,
        "name": manifest.name,
        "deployed_training": manifest.deployed_training,
        "parity_training": parity.training,
        "backup_trainings": [each.training for _, each in pairs],
        "inference_times": msgspec.structs.replace(times, backups=tuple(ms for ms, _ in pairs)),
        "calibration": gates,
        "envelope": envelope,
        "files": {each.file: deployed.path / each.file for each in manifest.files},
    }


def write_measured(
    out: Path,
    contents: dict[str, Any],
    queries: Queries,
    metric: str,
    *,
    calibrated: bool = False,
    on_measured: OnMeasured | None = None,
) -> tuple[Bundle, Evaluation | None]:
    """Write a bundle of the `contents`, with its gates and accuracy; return it, and how it fares.

    Gates are made by the queries for calibration, unless it is `calibrated` already; accuracy is
    measured on those for tests, if there are any.
    """
    gates, evaluation = contents["calibration"], None
    with TemporaryDirectory() as folder:
        draft = write_bundle(Path(folder, "draft"), **contents)
        found = queries.calibration
        if not calibrated and found is not None and len(found):
            gates = calibrate_gates(Outputs(draft, found, progress=on_measured), metric=metric)
        if queries.test is not None:
            outputs = Outputs(draft, queries.test, progress=on_measured)
            evaluation = judge(outputs, queries.test_labels, metric, gates)
    accuracy = None if evaluation is None else evaluation.accuracy
    bundle = write_bundle(out, **contents | {"calibration": gates, "accuracy": accuracy})
    return bundle, None if evaluation is None else replace(evaluation, bundle=bundle)
