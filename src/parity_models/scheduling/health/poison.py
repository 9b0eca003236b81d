"""Queries of death: inputs that end the instance that runs them.

A query that was running when its instance left may be the reason. It is a suspect, and so are the
queries that shared its batch or were encoded into the parity query that ran. Each suspect is tried
alone, which tells the innocent ones apart: in a batch of its own, with no copy beside it, and not
encoded. After three instances are lost with it, it fails as poison.

A query that runs on several instances at once (copies, parity queries of it) may end all of them.
It is then tried alone fewer times, so that still three instances are lost. More are lost only if
more than three ran it at once; or if three did, each beside other queries that may be the reason as
well: then it is tried alone once, to clear the others.

An instance may have been broken when the unit began, by earlier work that it had not finished. So
where an upstream restarts whatever ended, the next query would be blamed for it. The first such
losses are held against no query: it is tried again as if the instance had turned it away.

An instance that hung may have been slow for reasons of its own; one that ended seldom was. So a
query that is poison has run alone on one that ended, or on two that hung.
"""

from parity_models.scheduling.actions import DEPLOYED, Reason
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.policies import Policy
from parity_models.scheduling.port import HealthPort
from parity_models.scheduling.work import Query, Task, Unit

ENOUGH = 3
"""A query is poison once this many instances were lost while they ran it, if there is PROOF."""

EXCUSED = 3
"""The most losses that are not held against a query as its instances were broken before."""

PROOF, ENDED, HUNG = 2, 2, 1
"""The weight of the instances lost while they ran a query alone that makes it poison; each that
ended weighs ENDED, each that hung weighs HUNG."""


class Poison:
    """Retries what instances ran when they left; acts through the port.

    `max_attempts`: how often a task is tried.
    """

    def __init__(
        self, port: HealthPort, policy: Policy, dispatch: Dispatch, max_attempts: int
    ) -> None:
        self._port = port
        self._policy = policy
        self._dispatch = dispatch
        self._max_attempts = max_attempts
        self._set_aside: dict[Query, Task | None] = {}

    def lost(self, unit: Unit) -> None:
        """An instance has left, and this unit with it."""
        suspects: dict[Query, bool] = {}
        for task in unit.tasks:
            held = unit.sound
            for query_id in self._policy.carries(task):
                query = self._port.pending_query(query_id)
                if query is not None and query not in suspects:
                    suspects[query] = held = unit.sound or query.excused >= EXCUSED
                    query.kills += held
                    query.excused += not held
            if task.wanted:
                task.failed_on.append(unit.instance)
                task.turned_away += not held
            if task.role != DEPLOYED:
                self._port.drop(task)
        for query, held in suspects.items():
            if held and len(suspects) == 1:
                query.proof += HUNG if unit.hung else ENDED
            self._port.tell((query.id,), self._policy.suspected, self._port, query)
            kept = self._keep_one(query)
            if kept is not None or _is_poison(query):
                self._set_aside[query] = kept
            self._port.tell((query.id,), self._policy.urgent, self._port, query)

    def retry(self) -> None:
        """Queue or fail those that were set aside, as far as it is known which is to be done."""
        if not self._set_aside:
            return
        for query, task in reversed(list(self._set_aside.items())):
            if self._port.pending_query(query.id) is None:
                del self._set_aside[query]
            elif query.decoding:
                continue
            elif task is None or _is_poison(query):
                del self._set_aside[query]
                lost = f"{query.kills} instances were lost while they ran it"
                self._port.fail(query, Reason.POISON, lost)
            elif len(task.failed_on) - task.turned_away >= self._max_attempts:
                del self._set_aside[query]
                tries = f"tried {len(task.failed_on)} times; the last time, its instance was lost"
                self._port.fail(query, Reason.INSTANCES_FAILED, tries)
            elif not self._runs(query):
                del self._set_aside[query]
                self._port.queue_again(task)

    def __len__(self) -> int:
        """How many queries are set aside."""
        return len(self._set_aside)

    def _keep_one(self, query: Query) -> Task | None:
        """Take the query's tasks from the queues; one is kept to be tried alone."""
        kept = None
        for task in query.tasks:
            if not task.wanted or task.unit is not None:
                continue
            if kept is None:
                kept = task
                task.alone = True
                self._dispatch.remove(task)
            else:
                self._port.drop(task)
        return kept

    def _runs(self, query: Query) -> bool:
        """Do copies of it run, or may what else runs with it cost too many instances already?"""
        if any(task.unit for task in query.tasks):
            return True
        exposed = self._policy.exposes(self._port, query)
        return exposed > 0 and query.kills + exposed >= ENOUGH


def _is_poison(query: Query) -> bool:
    return query.kills >= ENOUGH and query.proof >= PROOF
