"""Queries of death: inputs that end the instance that runs them.

A query that was running when its instance was lost may be the reason. It is a suspect, and so are
the queries that shared its batch or were encoded into the parity query that ran. Each suspect is
tried alone (in a batch of its own, with no copy at the same time, and not encoded), which clears
the innocent ones. After three instances are lost with it, it fails as poison.

A query that runs on several instances at once (copies, parity queries of it) may end all of them.
It is then tried alone fewer times, so that three instances are lost in all. More are lost only if
more than three ran it at once; or if three did, each with other suspects in the unit: then it is
tried alone once, to clear the others.

An instance may have been broken when the unit began, by earlier work that it had not finished. If
an upstream restarts after a crash, the next query would be blamed for that crash. The first such
losses are excused: the query is tried again as if the instance had turned it away.

An instance that hung may have been slow for reasons of its own; one that ended probably was not. So
a query counts as poison only if it ran alone on one that ended, or on two that hung.
"""

from parity_models.roles import DEPLOYED
from parity_models.scheduling.actions import Reason
from parity_models.scheduling.policies import Policy
from parity_models.scheduling.port import Core
from parity_models.scheduling.states import LOST
from parity_models.scheduling.work import Query, Task, Unit

CRASHES = 3
"""A query is poison once this many instances were lost with it, if enough of them ran it alone."""

MAX_EXCUSED = 3
"""The most losses that are excused because the instance was broken before."""

SOLO_CRASHES, ENDED, HUNG = 2, 2, 1
"""An instance lost while it ran the query alone weighs ENDED, or HUNG if it hung; SOLO_CRASHES in
all are enough."""


class Poison:
    """Retries or fails the queries that instances ran when they were lost."""

    def __init__(self, core: Core, policy: Policy) -> None:
        self._core = core
        self._policy = policy
        self.set_aside: dict[Query, Task | None] = {}
        """The suspects that are to be tried alone, or to fail, and the task to try."""

    def lost(self, unit: Unit) -> None:
        core, policy = self._core, self._policy
        suspects: dict[Query, bool] = {}
        for task in unit.tasks:
            counts = unit.sound
            for query_id in task.inputs:
                query = core.queries.get(query_id)
                if query is not None and query not in suspects:
                    counts = unit.sound or query.excused_crashes >= MAX_EXCUSED
                    if unit.hung and core.now - unit.started < query.due - query.arrived:
                        counts = False  # it may merely be slow
                    suspects[query] = counts
                    query.crashes += counts
                    query.excused_crashes += not counts
            if task.wanted:
                task.failed_on += (unit.instance,)
                task.turned_away += not counts
            if task.role != DEPLOYED:
                core.drop(task)
        for query, counts in suspects.items():
            if counts and len(suspects) == 1:
                query.solo_crashes += HUNG if unit.hung else ENDED
            if query.backup is not None and query.backup.unit is None:
                core.drop(query.backup)
            core.tell((query.id,), policy.on_suspected_poison, core, query)
            kept = self._keep_one(query)
            if kept is not None or _is_poison(query):
                self.set_aside[query] = kept
                core.advance(query, LOST)
            core.tell((query.id,), policy.on_loss_or_deadline, core, query)

    def retry(self) -> None:
        """Queue or fail each query that was set aside, once its fate is known."""
        core = self._core
        for query, task in reversed(list(self.set_aside.items())):
            if query.id in core.queries:
                if query.decoding:
                    continue
                if task is None or _is_poison(query):
                    lost = f"{query.crashes} instances were lost while they ran it"
                    core.fail(query, Reason.POISON, lost)
                elif len(task.failed_on) - task.turned_away >= core.config.max_attempts:
                    tries = f"tried {len(task.failed_on)} times"
                    detail = f"{tries}; the last time, its instance was lost"
                    core.fail(query, Reason.INSTANCES_FAILED, detail)
                elif self._must_wait(query):
                    continue
                else:
                    core.queue_again(task)
            del self.set_aside[query]

    def _keep_one(self, query: Query) -> Task | None:
        """Take the query's tasks from the queues; return the one that is tried alone."""
        kept = None
        for task in query.tasks:
            if not task.wanted or task.unit is not None:
                continue
            if kept is None:
                kept = task
                task.alone = True
                self._core.dispatch.remove(task)
            else:
                self._core.drop(task)
        return kept

    def _must_wait(self, query: Query) -> bool:
        """Return whether a copy of it runs, or so many redundant tasks with its input that one more
        task could cost too many instances."""
        if any(task.unit for task in query.tasks):
            return True
        exposed = self._core.copies_in_flight(query)
        return exposed > 0 and query.crashes + exposed >= CRASHES


def _is_poison(query: Query) -> bool:
    return query.crashes >= CRASHES and query.solo_crashes >= SOLO_CRASHES
