"""The scheduler's data: its bounds, queries, tasks and units. Times are in seconds."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from parity_models.scheduling.states import QueryState

MIN_DELAY = 1e-4
"""Minimum delay, in seconds, before a postponed decision is reconsidered.

A delay learned from units that took no time would be 0, and the decision would be reconsidered for
ever at one instant.
"""


COMPARE: Final = 0.03
"""The usual share of queries that are compared: 10,000 an hour at 100 queries a second."""


def due(seen: int, one_in: int, random: Random) -> bool:
    """Draw whether to compare an answer: one in `one_in`, and more while few were `seen`, so that a
    stand-in that is wrong from the start is found out at once."""
    return random.random() * min(one_in, 1 + seen / one_in) < 1


@dataclass(frozen=True)
class SchedulerConfig:
    """Bounds of the scheduler.

    Args:
        max_batch: The most rows in a unit.
        max_queue: The most queries that may wait; more are refused.
        deadline: Seconds after which an unanswered query fails, unless it brings its own deadline.
        max_attempts: Attempts on failing instances before a query fails.
        verify_every: An instance answers a golden query of each role when it joins, after this many
            queries of that role, and when it is suspected; 0: never.
        sample_every: One in this many answers of an instance is checked, more at first: another
            instance answers the query as well, and if they differ, a third decides; 0: never.
        compare: The share of queries in time, drawn at random, that idle instances run on a
            stand-in as well, only to compare it.
        compare_one_in: One in this many stand-in units that are no longer needed may finish, to be
            compared with the deployed model. The model runs on for one in this many answers of
            stand-ins, and for more of the first ones, to be compared with them.
        seed: The seed of the random waits that refused clients are asked for; unique to a server.
        grace: Seconds for which queries are still taken once no instance of the model is up.
        spread: Share what waits between the idle instances; else the first one takes a full batch,
            which costs less where a unit takes less time than the messages about it.
        share_groups: True if queries without a tenant share coding groups; a tenant's always do.

    """

    max_batch: int = 1
    max_queue: int = 1000
    deadline: float = 10.0
    max_attempts: int = 5
    verify_every: int = 0
    sample_every: int = 0
    compare: float = COMPARE
    compare_one_in: int = 20
    grace: float = 0.0
    spread: bool = True
    share_groups: bool = True
    seed: int = 0


@dataclass(slots=True, eq=False)
class Task:
    """One row of work for one model: queued, or running as part of a unit, or over.

    Tasks with the same subject (copies of a query) or the same coding group never share a batch:
    one slow instance would hold up all of them. Each list in `apart` holds this task and others
    that run on different instances and nodes, as far as there are enough.
    """

    role: str
    subject: int
    kind: Hashable
    group: int | None = None
    """The coding group that its query is a member of."""
    preemptible: bool = False
    """It runs only on capacity that originals do not need."""
    alone: bool = False
    """It shares its batch with no other task."""
    first: bool = False
    """It asks the backup in place of its query's original."""
    members: Sequence[int] = ()
    """The queries in its parity query."""
    doubt: float = 0.0
    """The probability that the output of the backup differs from the model's prediction."""
    has_output: bool = False
    """The backup has run it."""
    audited: bool = False
    """A stand-in has answered its query; the model runs only to be compared with it."""
    comparing: bool = False
    """It only compares a stand-in with an answer of the model; policies do not see it."""
    unit: "Unit | None" = None
    instance: str | None = None
    """The instance that runs it."""
    queue: "OrderedDict[Task, None] | None" = None
    """The queue that it waits in."""
    wanted: bool = True
    failed_on: tuple[str, ...] = ()
    turned_away: int = 0
    """The number of instances in `failed_on` that were only busy."""
    charge: tuple[str, float] | None = None
    """The instance that was charged with its failure, and by how much (health.py)."""
    apart: list[list["Task"]] = field(default_factory=list)

    @property
    def inputs(self) -> Sequence[int]:
        """The queries whose inputs it contains."""
        return self.members or (self.subject,)


@dataclass(slots=True, eq=False)
class Unit:
    """A batch of tasks on an instance, or a golden query of `role` if there are no tasks."""

    id: int
    instance: str
    role: str
    tasks: list[Task]
    started: float
    kind: Hashable = None
    """The kind of its tasks' queries."""
    is_original: bool = False
    """It runs the deployed model, or a stand-in asked before it, and is not preemptible."""
    sound: bool = True
    """The instance had finished its work before this unit, so it was well when the unit began."""
    hung: bool = False
    """The instance is being replaced because the unit does not end."""
    took: float = 0.0
    """The run time of a unit that has ended, without the time that its report waited."""


@dataclass(slots=True, eq=False)
class Query:
    """A query that has been neither answered nor failed.

    Only queries of the same `tenant` share a coding group, if they are `coded`. Only the deployed
    model answers an `exact` query: its client asked for that, or its inputs are unlike those that
    stand-ins learned from (it is then not coded), or a stand-in's output was rejected for it.
    """

    id: int
    kind: Hashable
    arrived: float
    due: float
    original: Task
    tasks: list[Task]
    """The original and its copies, all on the deployed model."""
    tenant: Hashable = None
    exact: bool = False
    coded: bool = True
    screened: bool = False
    """Its inputs were compared with those that stand-ins learned from."""
    backup: Task | None = None
    """The newest task of the backup for it."""
    state: QueryState = QueryState.WAITING
    decoding: bool = False
    """It is being reconstructed."""
    crashes: int = 0
    """Units with its input that were running when their instance was lost."""
    excused_crashes: int = 0
    """Such units whose instance was broken before they began; they do not count as `crashes`."""
    solo_crashes: int = 0
    """The weight of crashes with no other pending query's input in the unit (poison.py)."""
    timer: int = 0
    """The timer of its deadline."""
    stranded: bool = False
    """No instance of the deployed model answered while it was pending."""
    alarm: int = 0
    """The policy's last timer for it, which ends with the query; 0: none was set."""
