"""What a redundancy policy is told, and what it is asked."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from parity_models.scheduling.actions import DEPLOYED
from parity_models.scheduling.dispatch import Dispatch, SingleQueue
from parity_models.scheduling.work import Query, Task, Unit

if TYPE_CHECKING:
    from parity_models.scheduling.scheduler import Scheduler


class Policy:
    """A redundancy policy: by default, nothing is sent besides the originals.

    The scheduler calls the hooks below as queries live; a policy acts through the scheduler's
    methods (submit, drop, answer, emit, set_timer, hold, release). A policy serves one
    scheduler.
    """

    def works(self, instances: int, parity_instances: int) -> list[frozenset[str]]:
        """What each instance runs, given `instances` and the extra ones for redundancy.

        By default all of them run the deployed model.
        """
        return [frozenset({DEPLOYED})] * (instances + parity_instances)

    def dispatch(self) -> Dispatch:
        """The dispatch rule, where none is asked for."""
        return SingleQueue()

    def arrived(self, scheduler: Scheduler, query: Query) -> None:
        """A query was admitted; its original is queued and will be dispatched after this."""

    def predicted(self, scheduler: Scheduler, task: Task) -> None:
        """The deployed model's prediction for this task is here; its answer, if it still needs
        one, follows."""

    def starts(self, scheduler: Scheduler, task: Task) -> None:
        """A task of the deployed model is about to run: it is known on which instance."""

    def redundancy_starts(self, scheduler: Scheduler, task: Task) -> None:
        """A task of redundant work is about to run."""

    def redundancy_finished(self, scheduler: Scheduler, task: Task) -> None:
        """The output of a task of redundant work is here."""

    def unit_ended(self, scheduler: Scheduler, unit: Unit, *, finished: bool) -> None:
        """An instance has run this unit to its end, or, not `finished`, will run it no further."""

    def decoded(self, scheduler: Scheduler, group: int, wrong: Collection[int]) -> None:
        """A Decode was carried out; what it gave for the slots `wrong` cannot be right."""

    def carries(self, task: Task) -> Collection[int]:
        """The queries whose input the task carries."""
        return (task.subject,)

    def exposes(self, scheduler: Scheduler, query: Query) -> int:
        """How many redundant tasks run that carry the query's input."""
        return 0

    def suspected(self, scheduler: Scheduler, query: Query) -> None:
        """The query may end instances: start no redundant work with its input any more."""

    def may_answer(self, scheduler: Scheduler, query: Query) -> bool:
        """May redundant work under way still answer this query, which waits for an instance?"""
        return False

    def urgent(self, scheduler: Scheduler, query: Query) -> None:
        """The query's instance failed or its deadline is here: answer it now if that can be."""

    def resolved(self, scheduler: Scheduler, query: Query) -> None:
        """The query has just been answered or failed."""
