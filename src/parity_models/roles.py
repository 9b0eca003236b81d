"""The models that instances run, by role, and the sources of answers."""

from enum import StrEnum
from typing import Literal, get_args

DEPLOYED = "deployed"
"""The role of running the deployed model."""

BACKUP = "backup"
"""The role of running an approximate backup: a cheaper network, over the same queries."""

Backup = Literal["backup", "backup-2", "backup-3", "backup-4"]
BACKUPS: tuple[Backup, ...] = get_args(Backup)
"""The roles of the backups of a bundle, which may have as many at most: the fastest first."""


def parity_role(j: int) -> str:
    """Return the role of running parity model j, one for each row of the code."""
    return f"parity-{j}"


class Source(StrEnum):
    """Sources of answers."""

    MODEL = "model"
    RECONSTRUCTION = "reconstruction"
    BACKUP = "backup"
    BACKUP_2 = "backup-2"
    BACKUP_3 = "backup-3"
    BACKUP_4 = "backup-4"

    @property
    def stands_in(self) -> bool:
        """True if it is a stand-in."""
        return self is not Source.MODEL


def source_of(role: str) -> Source:
    """Return the source of answers of this role; that of a backup has the role's name."""
    if role == DEPLOYED:
        return Source.MODEL
    return Source(role) if role in BACKUPS else Source.RECONSTRUCTION
