"""Queries of death: inputs that end the instance that runs them.

A query that was running when its instance left may be the reason. It is a suspect, and so are those
that shared its batch, or were encoded into the parity query that ran: the innocent ones are told
apart by running each alone. A suspect is tried in a batch of its own, with no copy beside it, and
is encoded no more. Three instances lost with it are enough: then it fails, as poison.

A query that runs on several instances at once (copies, parity queries of it) may end all of these.
It is then tried alone less often, such that three instances are lost all the same. More are lost
only where more than three ran it at once; or where three did, each beside other queries that may as
well be the reason: then it is tried alone once, for their sake.

An instance may have been broken when the unit began: by what it had been given before, and has not
finished. Where an upstream restarts what ended, the next query would be taken for the reason. Such
a loss is held against no query, so often: it is tried again as if the instance had turned it away.

An instance that hung may have been slow for reasons of its own, where one that ended seldom has.
So a query that is poison has run alone on one that ended, or on two that hung.
"""

from parity_models.scheduling.actions import DEPLOYED, Reason
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.policies import Policy
from parity_models.scheduling.port import HealthPort
from parity_models.scheduling.work import Query, Task, Unit

ENOUGH = 3
"""A query is poison once so many instances were lost while they ran it, ..."""

EXCUSED = 3
"""So many losses are not held against a query: its instances had not finished what came before."""

PROOF, ENDED, HUNG = 2, 2, 1
"""... and what happened to those that ran it alone weighs so much: each that ended, or hung."""


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
