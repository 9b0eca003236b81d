"""What the scheduler knows of queries, tasks, units and timers, and the verbs that change it.

It implements the port (port.py says what the verbs do). The scheduler's own parts, which decide
when queries and units begin and end (queries.py, units.py), act through it like policies do; they
may also read and write the fields that are not private.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable
from functools import partial
from typing import Any

from parity_models.scheduling.actions import (
    BACKUPS,
    DEPLOYED,
    Action,
    Answer,
    Cancel,
    Compare,
    Decode,
    Encode,
    Fail,
    ForgetGroup,
    ForgetQueries,
    Reason,
    Recycle,
    RecycleReason,
    Source,
    Verify,
    WakeAt,
)
from parity_models.scheduling.admission import Admission, Refusal
from parity_models.scheduling.background import BackgroundComparison
from parity_models.scheduling.config import SchedulerConfig
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.front_door import FrontDoor
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.timers import LEAST_DELAY, Timer, Timers
from parity_models.scheduling.work import Query, Task, Unit

_log = logging.getLogger(__name__)


class SchedulerPort:
    """See above. Times in seconds."""

    def __init__(self, policy: Policy, config: SchedulerConfig, dispatch: Dispatch) -> None:
        self.policy = policy
        self.config = config
        self.dispatch = dispatch
        self.admission = Admission(config.max_queue, config.max_batch)
        self.now = 0.0
        self.max_batch = config.max_batch
        self.queries: dict[int, Query] = {}
        """Those that have been neither answered nor failed."""
        self.waiting: set[int] = set()
        """Those of them of which no task has run yet, or all that ran have failed."""
        self.running: dict[str, Unit | None] = {}
        """The unit of each instance that is up; None: it has none."""
        self.units: dict[int, Unit] = {}
        """Those that run, by id, oldest first."""
        self.background = BackgroundComparison(
            self,
            dispatch,
            policy.asks,
            self.units,
            one_in=config.compare_one_in,
            every=config.compare_every,
        )
        self.broken: list[tuple[int, str]] = []
        """Queries that are to fail, as a hook of the policy raised; and why."""
        self.deciding = False
        """Does a Decode answer the event? Then it is known soon who still needs an instance."""
        self.timers = Timers()
        self.actions: list[Action] = []
        """What answers the event that is being handled."""
        self.front_door = FrontDoor()
        self.redundancy_on = True
        self.work_held_back: Counter[str] = Counter()
        """How often a late query was not sent to a role, as it was too dear."""
        self._decodes: dict[int, list[Decode]] = {}
        self._holds: dict[int, int] = {}
        self._forgotten: list[int] = []
        self._wake_at: float | None = None
        self._last_unit = 0

    # What it may ask

    @property
    def pending(self) -> int:
        return len(self.queries)

    @property
    def nodes(self) -> int:
        return self.dispatch.nodes

    def run_time(self, unit: Unit) -> float:
        return (self.now if unit.ended is None else unit.ended) - unit.started

    def queued(self, role: str) -> int:
        return self.dispatch.depth(role)

    def up(self, role: str) -> int:
        return self.dispatch.up(role)

    def pending_query(self, query: int) -> Query | None:
        return self.queries.get(query)

    def is_placed(self, task: Task) -> bool:
        return self.dispatch.where(task) is not None

    def beside(self, task: Task, others: Iterable[Task]) -> bool:
        return self.dispatch.beside(task, others)

    # Tasks

    def submit(
        self,
        role: str,
        subject: int,
        kind: Hashable,
        apart: list[Task],
        *,
        preemptible: bool = False,
        avoid: Collection[str] = (),
    ) -> Task:
        query = self.queries.get(subject) if role in BACKUPS else None
        group = None if query is None else query.original.group
        task = Task(role, subject, kind, group, preemptible, apart=[apart], avoid=avoid)
        task.wanted = self.redundancy_on
        apart.append(task)
        self._queue(task)
        return task

    def copy(self, query: Query, *, last: bool = False, avoid: Collection[str] = ()) -> None:
        if query.id not in self.queries or not self.redundancy_on:
            return
        group = query.original.group
        apart = [query.tasks, *(t for t in query.original.apart if t is not query.tasks)]
        task = Task(DEPLOYED, query.id, query.kind, group, apart=apart, avoid=avoid)
        for tasks in apart:
            tasks.append(task)
        self._queue(task, first=not last)

    def held_back(self, role: str) -> None:
        self.work_held_back[role] += 1

    def drop(self, task: Task) -> None:
        if not task.wanted:
            return
        task.wanted = False
        task.apart.clear()  # breaks a reference cycle, so that memory is freed at once
        unit = task.unit
        if unit is None:
            self.dispatch.remove(task)
        elif not any(other.wanted for other in unit.tasks):
            if self.background.takes(unit):
                self.actions.append(Compare(unit.instance, unit.id))
            else:
                self.actions.append(Cancel(unit.instance, unit.id))

    def keep_apart(self, query: Query, apart: list[Task], group: int | None = None) -> None:
        original = query.original
        apart.append(original)
        original.apart.append(apart)
        if group is not None:
            for task in query.tasks:
                task.group = group

    def keep_idle(self, instances: int) -> None:
        self.dispatch.reserve = instances

    def queue_again(self, task: Task) -> None:
        self._queue(task, first=True)
        query = self.queries.get(task.subject) if task.role == DEPLOYED else None
        if query is not None and not any(copy.unit for copy in query.tasks):
            self.waiting.add(query.id)

    def _queue(self, task: Task, *, first: bool = False) -> None:
        """Queue a task that is still wanted and not running: no other is ever queued."""
        if task.wanted and task.unit is None:
            self.dispatch.add(task, first=first)

    def reported(self, unit_id: int, ended: float | None) -> None:
        """The report of a unit is here, whose instance says that it `ended` then."""
        unit = self.units.get(unit_id)
        if unit is not None and ended is not None and unit.started <= ended <= self.now:
            unit.ended = ended
            self.waited(self.now - ended)

    def waited(self, seconds: float) -> None:
        """Something has waited for the driver for so long."""
        self.front_door.waited(seconds, self.admission.typical_run)

    # Timers and hooks

    def set_timer(
        self, at: float, callback: Callable[[], None], about: Collection[int] = ()
    ) -> Timer:
        return self.timers.set(at, partial(self.tell, about, callback))

    def cancel_timer(self, timer: Timer | None) -> None:
        self.timers.cancel(timer)

    def set_alarm(self, query: Query, at: float, callback: Callable[[], None]) -> None:
        self.timers.cancel(query.alarm)
        at = max(at, self.now + LEAST_DELAY)
        query.alarm = self.set_timer(at, callback, (query.id,))

    def tell(
        self, about: Collection[int], hook: Callable[..., None], *args: Any, **options: Any
    ) -> None:
        try:
            hook(*args, **options)
        except Exception as error:
            _log.exception("the policy failed")
            self.broken += [(query, f"the policy failed: {error!r}") for query in about]

    # Answers

    def encode(self, encode: Encode) -> None:
        self.actions.append(encode)

    def decode(self, decode: Decode) -> None:
        for slot in decode.slots:
            self.queries[decode.members[slot]].decoding = True
        self._decodes.setdefault(decode.group, []).append(decode)
        self.deciding = True
        self.actions.append(decode)

    def take_decode(self, group: int) -> list[tuple[int, int]]:
        """The slots of the group, and their queries, that the oldest Decode is of that is not
        reported yet; it is from now on."""
        decodes = self._decodes.get(group)
        if not decodes:
            return []
        decode = decodes.pop(0)
        if not decodes:
            del self._decodes[group]
        return [(slot, decode.members[slot]) for slot in decode.slots]

    def forget_group(self, group: int) -> None:
        self.actions.append(ForgetGroup(group))

    def answer(self, query: Query, source: Source) -> None:
        self.actions.append(Answer(query.id, source))
        self._resolve(query)

    def fail(
        self, query: Query, reason: Reason, detail: str, retry_after: float | None = None
    ) -> None:
        self.actions.append(Fail(query.id, reason, detail, retry_after))
        self._resolve(query)

    def _resolve(self, query: Query) -> None:
        del self.queries[query.id]
        if query.id in self.waiting:
            self.waiting.remove(query.id)
        else:
            self.admission.query_ended()
        self.timers.cancel(query.timer)
        self.timers.cancel(query.alarm)
        for task in query.tasks:
            self.drop(task)
        self.tell((), self.policy.resolved, self, query)
        self.release(query.id)

    # The memory of queries

    def admit(self, query: Query) -> None:
        """The query is pending from now on, and waits."""
        self.queries[query.id] = query
        self.waiting.add(query.id)
        self._holds[query.id] = 1

    def refuse(self, queries: Iterable[int], why: Refusal) -> None:
        """These queries, which are not pending, fail."""
        for query in queries:
            self.actions.append(Fail(query, why.reason, why.detail, why.retry_after))
            self._forgotten.append(query)

    def remembers(self, query: int) -> bool:
        """Is the id of this query in use, whether it is pending or not?"""
        return query in self._holds

    def hold(self, query: int) -> bool:
        if query not in self._holds:
            return False
        self._holds[query] += 1
        return True

    def release(self, query: int) -> None:
        self._holds[query] -= 1
        if not self._holds[query]:
            del self._holds[query]
            self._forgotten.append(query)

    # Instances and their units

    def begin(self, instance: str, tasks: list[Task], golden: str | None = None) -> Unit:
        """An instance, which is idle, is given these tasks, or a golden query of a role."""
        self._last_unit += 1
        unit = Unit(self._last_unit, instance, tasks, self.now, golden)
        self.units[unit.id] = unit
        self.running[instance] = unit
        return unit

    def end(self, unit_id: int) -> Unit | None:
        """Take a unit off its instance; None: there is no such unit (any more)."""
        unit = self.units.pop(unit_id, None)
        if unit is not None:
            self.running[unit.instance] = None
        return unit

    def verify(self, instance: str, role: str, probe: int) -> Unit:
        unit = self.begin(instance, [], golden=role)
        self.actions.append(Verify(instance, unit.id, role, probe))
        return unit

    def recycle(self, instance: str, reason: RecycleReason, why: str) -> None:
        self.actions.append(Recycle(instance, reason, why))

    # For the scheduler

    def take_actions(self) -> list[Action]:
        """What answers the event, which is over; the wake-up for the next timer included."""
        if self._forgotten:
            self.actions.append(ForgetQueries(tuple(self._forgotten)))
            self._forgotten.clear()
        # A wake-up that comes too early does no harm and asks again, so that most events,
        # which only remove the earliest timer, need not replace the driver's.
        if self._wake_at is not None and self._wake_at <= self.now:
            self._wake_at = None
        at = self.timers.next()
        if at is not None and (self._wake_at is None or at < self._wake_at):
            self._wake_at = at
            self.actions.append(WakeAt(at))
        self.deciding = False
        actions, self.actions = self.actions, []
        return actions

    def __len__(self) -> int:
        """How many things are remembered."""
        known = (self.queries, self.waiting, self.units, self._decodes, self._holds)
        return sum(map(len, known)) + len(self.timers) + len(self.background)
