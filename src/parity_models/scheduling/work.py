"""What is queued and run: tasks, units, and the queries they are for."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from parity_models.scheduling.timers import Timer


@dataclass(slots=True, eq=False)
class Task:
    """One row of work for one model.

    Tasks with the same `apart` (a coding group) never share a batch, else one slow instance
    would hold up all of them. A task is queued, or running as part of a unit, or over.
    """

    work: str
    subject: int
    kind: Hashable
    apart: int | None = None
    unit: "Unit | None" = None
    wanted: bool = True
    failed_on: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Unit:
    """A batch of tasks that runs on one instance."""

    id: int
    instance: str
    tasks: list[Task]


@dataclass(slots=True, eq=False)
class Query:
    """A query that has neither been answered nor failed. Times in seconds."""

    id: int
    kind: Hashable
    arrived: float
    task: Task
    timer: Timer | None = None
