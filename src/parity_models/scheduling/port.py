"""The port: the state of the scheduler that policies may read, and the verbs that they act by.

It lies below policies, health and dispatch rules; the scheduler (core.py) is a `Port`. They read
queries, tasks and units, and never write them. Times are in seconds.
"""

import heapq
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable
from typing import Any

from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.actions import (
    Action,
    Answer,
    Cancel,
    Compare,
    Decode,
    Fail,
    Reason,
    Verify,
)
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.process_load import ProcessLoad
from parity_models.scheduling.work import MIN_DELAY, Query, SchedulerConfig, Task, Unit

_log = logging.getLogger(__name__)


class Port(ABC):
    """The state of a scheduler, and the verbs that change it."""

    def __init__(self, config: SchedulerConfig, dispatch: Dispatch) -> None:
        self.config = config
        self.dispatch = dispatch
        self.now = 0.0
        """The time of the event that is being handled."""
        self.max_batch = config.max_batch
        """Maximum number of tasks in a unit."""
        self.queries: dict[int, Query] = {}
        """The pending queries, by id."""
        self.units: dict[int, Unit] = {}
        """The units that run, by id, the oldest first."""
        self.unit_on: dict[str, Unit | None] = {}
        """The unit that each instance runs; None: it has none."""
        self.process_load = ProcessLoad()
        """The lag and the load of the server's own process."""
        self.closed_gates: set[Source] = set()
        """The sources whose gate is closed."""
        self.redundancy_on = True
        """True if redundancy is switched on; if not, copies and tasks are not queued."""
        self._actions: list[Action] = []
        self._waiting: set[int] = set()
        """The pending queries whose tasks have not run yet, or have all failed."""
        self._decodes: dict[int, list[Decode]] = {}
        """The Decodes of each group that are not reported as `decoded` yet, the oldest first."""
        self._deciding = False
        """This event led to a Decode; its outcome says which queries still need an instance."""
        self._holds: dict[int, int] = {}
        self._forgotten: list[int] = []
        self._broken: list[tuple[int, str]] = []
        """Queries that are to fail because a hook raised, and why."""
        self._timers: list[tuple[float, int]] = []
        """A heap of times and timers, cancelled ones among them; of two timers that are due at the
        same time, the first that was set fires."""
        self._last_timer, self._max_timers = 0, 64
        self._callbacks: dict[int, tuple[Callable[[], None], Collection[int]]] = {}
        """The callback of each timer that is set, and the queries that it is about."""
        self._last_unit = 0

    @abstractmethod
    def _end_query(self, query: Query) -> None:
        """The query is answered or failed: stop all work for it."""

    @abstractmethod
    def _audit(self, query: Query) -> None:
        """A stand-in answers the query: have the model run on, if its answer is audited."""

    @abstractmethod
    def _runs_on(self, unit: Unit) -> bool:
        """Return whether a unit that is not needed any more runs on, to be compared."""

    # Questions

    def queued(self, role: str) -> int:
        """Return how many tasks of this role are queued."""
        return self.dispatch.depths[role]

    def up(self, role: str) -> int:
        """Return how many instances are up that can run this role."""
        return len(self.dispatch.up[role])

    # Tasks

    def submit(
        self,
        role: str,
        subject: int,
        kind: Hashable,
        apart: list[Task],
        *,
        preemptible: bool = False,
    ) -> Task:
        """Queue a task of redundant work, which joins the tasks `apart` (see `keep_apart`)."""
        query = self.queries.get(subject) if role == BACKUP else None
        group = None if query is None else query.original.group
        task = Task(role, subject, kind, group, preemptible, apart=[apart])
        task.wanted = self.redundancy_on
        apart.append(task)
        if task.wanted:
            self.dispatch.add(task)
        return task

    def ask_first(self, query: Query) -> None:
        """Queue a task of the backup in place of the query's original.

        The original is queued again if the answer is rejected, if the task fails, or by
        `queue_again`.
        """
        self.dispatch.remove(query.original)
        if query.first is not None:
            self.drop(query.first)
        apart: list[Task] = []
        self.keep_apart(query, apart)
        query.first = self.submit(BACKUP, query.id, query.kind, apart)
        query.withheld = True

    def copy(self, query: Query) -> None:
        """Queue a copy of the query, to run the deployed model on another instance.

        It goes to the head of the queue, because it counts as old as its query.
        """
        if query.id not in self.queries or not self.redundancy_on:
            return
        group = query.original.group
        apart = [query.tasks, *(t for t in query.original.apart if t is not query.tasks)]
        task = Task(DEPLOYED, query.id, query.kind, group, apart=apart)
        for tasks in apart:
            tasks.append(task)
        self.dispatch.add(task, first=True)

    def drop(self, task: Task) -> None:
        """Unqueue a task that is not needed, or cancel its unit if no task in it is needed."""
        if not task.wanted:
            return
        task.wanted = False
        task.apart.clear()  # breaks a reference cycle, so that memory is freed at once
        unit = task.unit
        if unit is None:
            if task.queue is not None:
                self.dispatch.remove(task)
        elif not any(other.wanted for other in unit.tasks):
            action = Compare if self._runs_on(unit) else Cancel
            self._actions.append(action(unit.instance, unit.id))

    def keep_apart(self, query: Query, apart: list[Task], group: int | None = None) -> None:
        """Add the query's original to the tasks `apart`: anti-affinity.

        Tasks of the list, including later ones, run on different instances and nodes, as far as
        there are enough. With a coding `group`, the query's tasks share no batch with other
        members' tasks.
        """
        query.original.apart.append(apart)
        apart.append(query.original)
        if group is not None:
            for task in query.tasks:
                task.group = group

    def keep_idle(self, instances: int) -> None:
        """Start preemptible tasks only while more instances than these are idle."""
        self.dispatch.reserve = instances

    def queue_again(self, task: Task) -> None:
        """Queue a task at the head: it failed or was lost, or a stand-in was asked first."""
        if task.wanted and task.unit is None:
            self.dispatch.add(task, first=True)
        query = self.queries.get(task.subject) if task.role == DEPLOYED else None
        if query is not None:
            query.withheld = query.withheld and task is not query.original
            if not any(copy.unit for copy in query.tasks):
                self._waiting.add(query.id)

    # Timers

    def set_timer(
        self, at: float, callback: Callable[[], None], about: Collection[int] = ()
    ) -> int:
        """Call back once, at a time. If the callback raises, the queries in `about` fail.

        Return the number of the timer, which is above 0.
        """
        self._last_timer = timer = self._last_timer + 1
        self._callbacks[timer] = callback, about
        heapq.heappush(self._timers, (at, timer))
        if len(self._timers) > self._max_timers:
            self._timers = [entry for entry in self._timers if entry[1] in self._callbacks]
            heapq.heapify(self._timers)
            self._max_timers = 64 + 4 * len(self._timers)
        return timer

    def cancel_timer(self, *timers: int) -> None:
        """Cancel timers; fired ones and 0 are ignored."""
        for timer in timers:
            self._callbacks.pop(timer, None)

    def set_alarm(self, query: Query, at: float, callback: Callable[[], None]) -> None:
        """Call back at a time, unless the query has ended or has a newer alarm.

        There is a minimum delay, so that a postponed decision is not reconsidered for ever at one
        instant.
        """
        self._callbacks.pop(query.alarm, None)
        query.alarm = self.set_timer(max(at, self.now + MIN_DELAY), callback, (query.id,))

    def tell(self, about: Collection[int], hook: Callable[..., None], *args: Any) -> None:
        """Call a hook of the policy. If it raises, the queries in `about` fail."""
        try:
            hook(*args)
        except Exception as error:
            self._on_error(error, about)

    def _on_error(self, error: Exception, about: Collection[int]) -> None:
        _log.exception("the policy failed")
        self._broken += [(query, f"the policy failed: {error!r}") for query in about]

    # Answers

    def act(self, action: Action) -> None:
        """Have the driver carry out an action that changes nothing here.

        A group's parity queries are made by `Encode` before its first parity task runs.
        """
        self._actions.append(action)

    def decode(self, decode: Decode) -> None:
        """Have slots of a group reconstructed, and their queries answered.

        Until then these queries are `decoding`. A query whose reconstruction is rejected is not
        answered, and is `exact` from then on.
        """
        for slot in decode.slots:
            self.queries[decode.members[slot]].decoding = True
        self._decodes.setdefault(decode.group, []).append(decode)
        self._deciding = True
        self._actions.append(decode)

    def answer(self, query: Query, source: Source, doubt: float = 0.0) -> None:
        """Answer the query, now. A stand-in's output differs with the probability `doubt`."""
        self._actions.append(Answer(query.id, source, doubt))
        if source.stands_in:
            self._audit(query)
        self._end_query(query)

    def fail(
        self, query: Query, reason: Reason, detail: str, retry_after: float | None = None
    ) -> None:
        """Fail the query, now."""
        self._actions.append(Fail(query.id, reason, detail, retry_after))
        self._end_query(query)

    def hold(self, query: int) -> bool:
        """Keep a query's tensors until a matching `release`. Return False if they are already
        forgotten."""
        if query not in self._holds:
            return False
        self._holds[query] += 1
        return True

    def release(self, query: int) -> None:
        """Give up a hold on a query's tensors."""
        self._holds[query] -= 1
        if not self._holds[query]:
            del self._holds[query]
            self._forgotten.append(query)

    # Instances

    def verify(
        self, instance: str, role: str, probe: int, query: int | None = None, kind: Hashable = None
    ) -> Unit:
        """Have an instance that gets nothing else answer a golden query of a role, or a `query` of
        this kind again."""
        self._last_unit += 1
        unit = Unit(self._last_unit, instance, role, [], self.now, kind)
        self.units[unit.id] = self.unit_on[instance] = unit
        self._actions.append(Verify(instance, unit.id, role, probe, query))
        return unit
