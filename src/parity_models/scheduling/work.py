"""What is queued and run: tasks, units, and the queries they are for."""

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

from parity_models.scheduling.actions import DEPLOYED
from parity_models.scheduling.timers import Timer


@dataclass(slots=True, eq=False)
class Task:
    """One row of work for one model.

    Tasks with the same subject (copies of a query), or with the same `group` (its coding group, if
    it is of a member of one), never share a batch, else one slow instance would hold up all of
    them. `apart` are lists of tasks, this one in each, that run on different instances and nodes,
    as far as there are enough; so do they, after that, on other instances than those to `avoid`.
    A `preemptible` task runs only on capacity that originals do not need; one that is `alone`
    shares its batch with no other. One that is `comparing` is for nobody but the comparison with
    what the deployed model has answered; no policy knows of it (background.py).
    A task is queued, or running as part of a unit, or over. Of the instances that it failed on, as
    many as `turned_away` were only busy. `charge`: which instance was charged with its failure, and
    with how much.
    """

    role: str
    subject: int
    kind: Hashable
    group: int | None = None
    preemptible: bool = False
    alone: bool = False
    comparing: bool = False
    unit: "Unit | None" = None
    wanted: bool = True
    failed_on: list[str] = field(default_factory=list)
    turned_away: int = 0
    charge: tuple[str, float] | None = None
    apart: list[list["Task"]] = field(default_factory=list)
    avoid: Collection[str] = ()


@dataclass(slots=True, eq=False)
class Unit:
    """A batch of tasks that runs on one instance since `started`.

    Where it has no tasks, it is a golden query of the role `golden` instead. `sound`: what the
    instance was given before, it has finished, so that it was well when this unit began. `hung`:
    its instance is replaced because this unit does not end. `ended`: when the instance was done, if
    it has said so.
    """

    id: int
    instance: str
    tasks: list[Task]
    started: float
    golden: str | None = None
    sound: bool = True
    hung: bool = False
    ended: float | None = None

    @property
    def role(self) -> str:
        return self.golden or self.tasks[0].role

    @property
    def is_original(self) -> bool:
        """Does it run the deployed model, other than as preemptible work?"""
        return bool(self.tasks) and self.tasks[0].role == DEPLOYED and not self.tasks[0].preemptible

    @property
    def is_comparison(self) -> bool:
        """Does it run for nobody but a comparison?"""
        return bool(self.tasks) and self.tasks[0].comparing


@dataclass(slots=True, eq=False)
class Query:
    """A query that has neither been answered nor failed. Times in seconds.

    `tasks` are the original and its copies; all of them run the deployed model. `timer` is its
    deadline, `alarm` the policy's timer that ends with it. Queries of different
    `tenant` never share a coding group; one that is `exact` joins none, and is answered by the
    deployed model alone. It fails at `due`. `decoding`: it is being reconstructed; `backups`: the
    roles of those that it may be asked of, the fastest first; `refusals`: how often what
    a stand-in said was not to be given; `spoiled`: none is asked again. `kills` counts
    the units with its input that were running when their instance left, but for those `excused`;
    `proof` weighs those of them that had no other pending query's input.
    """

    id: int
    kind: Hashable
    arrived: float
    tasks: list[Task]
    due: float
    tenant: Hashable = None
    exact: bool = False
    backups: tuple[str, ...] = ()
    decoding: bool = False
    refusals: int = 0
    spoiled: bool = False
    kills: int = 0
    excused: int = 0
    proof: int = 0
    timer: Timer | None = None
    alarm: Timer | None = None

    @property
    def original(self) -> Task:
        return self.tasks[0]

    @property
    def was_lost(self) -> bool:
        """Has an instance failed it?"""
        return any(task.failed_on for task in self.tasks)
