"""The models that instances run, by role, and the sources of answers."""

from enum import StrEnum

DEPLOYED = "deployed"
"""The role of running the deployed model."""

BACKUP = "backup"
"""The role of running an approximate backup: a cheaper network, over the same queries."""


def parity_role(j: int) -> str:
    """Return the role of running parity model j, one for each row of the code."""
    return f"parity-{j}"


class Source(StrEnum):
    """Sources of answers."""

    MODEL = "model"
    RECONSTRUCTION = "reconstruction"
    BACKUP = "backup"
    COPY = "copy"

    @property
    def stands_in(self) -> bool:
        """True if it is a stand-in."""
        return self in (Source.RECONSTRUCTION, Source.BACKUP)


SOURCES = (Source.MODEL, Source.RECONSTRUCTION, Source.BACKUP)
"""The sources that a server names: to its clients, a copy's answer is the model's."""


def source_of(role: str) -> Source:
    """Return the source of answers of this role."""
    if role == DEPLOYED:
        return Source.MODEL
    return Source.BACKUP if role == BACKUP else Source.RECONSTRUCTION
