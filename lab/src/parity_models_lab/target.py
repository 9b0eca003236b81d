"""A target of the project, held against what was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A claim, what is wanted and what was measured; `met` None where it was not measured."""

    what: str
    wanted: str
    measured: str
    met: bool | None
