"""The backups of a bundle that is written anew: the fastest first, with all that is known of each.

What is said of a backup goes by its place, so that it moves where the place does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from parity_models.errors import TrainingError
from parity_models.models.bundle import Bundle, InferenceTimes, NewModel, Training
from parity_models.models.gate import Calibration, StandIn
from parity_models.models.inference_time import measure_models
from parity_models.models.signature import Sizes
from parity_models.roles import BACKUPS


@dataclass(frozen=True)
class KnownBackup:
    """A backup to be put into a bundle, how it was trained, and its gate, if it was calibrated."""

    model: NewModel
    training: Training | None = None
    gate: Calibration | None = None


@dataclass(frozen=True)
class Ranked:
    """What is said of backups in a bundle, the fastest first, and of all models the times."""

    backups: list[NewModel]
    trainings: list[Training | None]
    calibration: dict[StandIn, Calibration]
    times: InferenceTimes


def backups_of(bundle: Bundle) -> list[KnownBackup]:
    """The backups of a bundle, to be put into another."""
    manifest = bundle.manifest
    trainings = manifest.backup_trainings or [None] * len(manifest.backups)
    return [
        KnownBackup(bundle.stored(backup), training, manifest.calibration.get(role))
        for (role, backup), training in zip(manifest.backup_roles.items(), trainings, strict=True)
    ]


def check_room(bundle: Bundle) -> None:
    """Raise TrainingError if the bundle has as many backups as it may."""
    if len(bundle.manifest.backups) == len(BACKUPS):
        raise TrainingError(
            f"{bundle.path} has {len(BACKUPS)} backups, and may not have more; leave out --keep, "
            "and the new one is in their place"
        )


def ranked(
    deployed: NewModel,
    parity: Sequence[NewModel],
    backups: Sequence[KnownBackup],
    sizes: Sizes | None = None,
) -> Ranked:
    """The models of a bundle are timed, as by `measure_models`, and its backups put in order."""
    times = measure_models(deployed, parity, [each.model for each in backups], sizes)
    order = sorted(range(len(backups)), key=times.backups.__getitem__)
    return in_order([backups[i] for i in order], times)


def in_order(backups: Sequence[KnownBackup], times: InferenceTimes) -> Ranked:
    """What is said of backups that are in order already; `times` may have theirs in another."""
    return Ranked(
        [each.model for each in backups],
        [each.training for each in backups],
        {
            role: each.gate
            for role, each in zip(BACKUPS, backups, strict=False)
            if each.gate is not None
        },
        InferenceTimes(
            times.deployed, times.parity, tuple(sorted(times.backups)), times.deployed_batch
        ),
    )
