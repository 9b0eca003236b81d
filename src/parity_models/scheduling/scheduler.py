"""The scheduler: everything that decides what runs where and when a query is answered.

Theory of operation. A driver (the asyncio frontend, the simulator, a test) reports events by
calling the methods of `Scheduler` and carries out the actions they return, in order. Nothing
here waits, sleeps or reads a clock: the same events give the same actions.

- A *query* lives from `queries_arrived` until it is answered or failed, once. Its deadline is a
  timer; whatever happens, it ends then.
- A *task* is one row of work for one model: the query itself for the deployed model, a parity
  query for a parity model. It is queued, then running as part of a unit, then over.
- A *unit* is the batch of tasks that one instance runs. An instance runs one unit at a time.
  The tasks of a failed unit, or of an instance that left, go back to the head of the queue.
- A *node* is what instances fail with: their machine. A query and its copies, and the units of a
  coding group, run on different nodes, as far as there are instances on enough of them.
- The *policy* (policies/) decides what is sent besides the originals and when an answer can be
  had otherwise. It acts through the port (port.py), which is the second half of the class.
- *Holds* count who may still need a query's tensors: the query itself while unanswered, its
  coding group, the padding kept for lonely queries. The last one to let go makes the driver
  forget them.
"""

import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

from parity_models.scheduling.actions import (
    DEPLOYED,
    Action,
    Answer,
    Cancel,
    Decode,
    Encode,
    Fail,
    ForgetGroup,
    ForgetQueries,
    Reason,
    Recycle,
    RecycleReason,
    Run,
    Source,
    Verify,
    WakeAt,
)
from parity_models.scheduling.admission import Admission
from parity_models.scheduling.config import SchedulerConfig
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.health import Health, Poison, State
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.timers import Timer, Timers
from parity_models.scheduling.work import Query, Task, Unit

_log = logging.getLogger(__name__)


class Scheduler:
    """Events in, actions out; see the theory of operation above. Times in seconds.

    The contract with the driver: it reports what happened to one instance in order, but an event
    may be reported late, after timers that were due before it, or twice, or for a unit or an
    instance that is gone. What an event says counts before timers that have become due in the
    meantime: an output that is here answers its query, however late it is. An event that says
    nothing new is ignored. A `Cancel` may come for a unit that has ended but is not reported yet;
    the driver ignores it. If a hook of the policy raises, the queries that it was about fail as
    INTERNAL, and all else goes on.

    Raises ValueError for a query id that is in use: the only thing that no lateness explains.
    """

    def __init__(
        self,
        policy: Policy,
        config: SchedulerConfig | None = None,
        dispatch: Dispatch | None = None,
    ) -> None:
        self.now = 0.0
        self._policy = policy
        self._config = config or SchedulerConfig()
        self._dispatch = policy.dispatch() if dispatch is None else dispatch
        self._queries: dict[int, Query] = {}
        self._waiting: set[int] = set()
        self._units: dict[int, Unit] = {}
        self._running: dict[str, Unit | None] = {}
        self._holds: dict[int, int] = {}
        self._admission = Admission(self._config.max_queue, self._config.max_batch)
        self._timers = Timers()
        self._wake_at: float | None = None
        self._last_id = 0
        self._health = Health(
            self,
            self._dispatch,
            verify_every=self._config.verify_every,
            deadline=self._config.deadline,
        )
        self._poison = Poison(self, policy, self._dispatch, self._config.max_attempts, self._tell)
        self._decodes: dict[int, list[Decode]] = {}
        self._deciding = False
        self._overdue: list[Query] = []
        self._broken: list[tuple[int, str]] = []
        self._actions: list[Action] = []
        self._forgotten: list[int] = []

    # Events

    def queries_arrived(
        self,
        now: float,
        queries: Sequence[int],
        kind: Hashable,
        deadline: float | None = None,
        *,
        tenant: Hashable = None,
        exact: Collection[int] = (),
    ) -> list[Action]:
        """Queries of one kind (shape and dtype) arrived together; all or none are admitted.

        `deadline` is the time at which they fail if unanswered. They share coding groups only with
        queries of the same `tenant`, and those that are `exact` with none.
        """
        for query_id in queries:
            if query_id in self._holds:
                raise ValueError(f"query {query_id} is here already; ids must be unique")
        self._advance(now)
        self._timers.fire(self.now)  # what has expired does not wait
        due = now + self._config.deadline if deadline is None else deadline
        refusal = self._admission.refusal(
            self.now,
            due,
            len(queries),
            waiting=len(self._waiting),
            instances=self._dispatch.up(DEPLOYED),
            idle=partial(self._dispatch.idle_for, DEPLOYED),
        )
        if refusal is not None:
            for query_id in queries:
                fail = Fail(query_id, refusal.reason, refusal.detail, refusal.retry_after)
                self._emit(fail)
                self._forgotten.append(query_id)
            return self._done()
        # Once it is too late to start it, it is looked at whether it still waits.
        too_late = due - self._admission.typical_run
        for query_id in queries:
            query = Query(
                query_id,
                kind,
                now,
                [Task(DEPLOYED, query_id, kind)],
                due,
                tenant,
                query_id in exact,
            )
            query.original.apart.append(query.tasks)
            query.timer = self._timers.set(too_late, partial(self._too_late, query))
            self._queries[query_id] = query
            self._waiting.add(query_id)
            self._holds[query_id] = 1
            self._dispatch.add(query.original)
            self._tell((query_id,), self._policy.arrived, self, query)
        return self._done()

    def queries_abandoned(self, now: float, queries: Iterable[int]) -> list[Action]:
        """Nobody waits for these queries any more; those that are pending end."""
        return self._fail_all(now, queries, Reason.ABANDONED, "its client has given up")

    def queries_failed(self, now: float, queries: Iterable[int], detail: str) -> list[Action]:
        """The driver could not carry out an action for these queries; those pending fail."""
        return self._fail_all(now, queries, Reason.INTERNAL, detail)

    def unit_finished(self, now: float, unit: int, unusable: Collection[int] = ()) -> list[Action]:
        """An instance has run a unit; the driver holds its outputs.

        The outputs for the subjects `unusable` cannot be right: a stand-in's answers nobody, and a
        prediction of the deployed model is the answer to its own query only.
        """
        self._advance(now)
        ended = self._end(unit, finished=True)
        for task in ended.tasks if ended else ():
            usable = task.subject not in unusable
            if task.work != DEPLOYED:
                if usable:
                    self._tell((), self._policy.redundancy_finished, self, task)
                continue
            if usable:
                self._tell((task.subject,), self._policy.predicted, self, task)
            query = self._queries.get(task.subject)
            if query is not None:
                self.answer(query, Source.MODEL)
        return self._done()

    def unit_failed(self, now: float, unit: int, detail: str, *, busy: float = 0.0) -> list[Action]:
        """A unit failed on an instance that is still up (or was cancelled).

        `busy`: the instance has turned it away, which is nobody's failure, and gets no unit for so
        many seconds.
        """
        self._advance(now)
        ended = self._end(unit, finished=False, rest=busy)
        if ended is not None:
            self._lose(ended, detail, turned_away=busy > 0)
        return self._done()

    def decoded(self, now: float, group: int, wrong: Collection[int] = ()) -> list[Action]:
        """A Decode has been carried out; the reconstructions of the slots `wrong` cannot be right.

        To be reported for every Decode, as soon as the actions beside it have been carried out.
        """
        self._advance(now)
        self._settle_decode(group, wrong)
        for query in [query for query in self._overdue if not query.decoding]:
            self._give_up(query)
        return self._done()

    def instance_joined(
        self, now: float, instance: str, works: frozenset[str], node: str | None = None
    ) -> list[Action]:
        """An instance is up, idle, and can run these works; None: it has a node to itself."""
        self._advance(now)
        if instance not in self._running:
            self._running[instance] = None
            self._health.joined(instance, works, node)
        return self._done()

    def instance_left(self, now: float, instance: str) -> list[Action]:
        """An instance is gone, and what it was running with it."""
        self._advance(now)
        if instance not in self._running:
            return self._done()
        unit = self._running.pop(instance)
        for task in unit.tasks if unit else ():
            task.unit = None
        self._health.left(instance)
        if unit is not None:
            del self._units[unit.id]
            if unit.tasks:
                self._ended(unit, finished=False)
                self._poison.lost(unit)
        return self._done()

    def unit_verified(self, now: float, unit: int, right: bool) -> list[Action]:
        """An instance has answered the golden query of a Verify, and the answer is right or not."""
        self._advance(now)
        golden = self._units.get(unit)
        if golden is not None and golden.golden is not None:
            del self._units[unit]
            self._running[golden.instance] = None
            self._health.verified(golden, right=right)
        return self._done()

    def compared(self, now: float, instance: str, agreed: bool) -> list[Action]:
        """A prediction of this instance agrees with what would have replaced it, or does not."""
        self._advance(now)
        self._health.compared(instance, agreed=agreed)
        return self._done()

    def time_passed(self, now: float) -> list[Action]:
        """It is `now`; the driver calls this at the time of the last WakeAt."""
        self._advance(now)
        return self._done()

    # What a driver may ask

    @property
    def pending(self) -> int:
        """How many queries have been neither answered nor failed."""
        return len(self._queries)

    def queue_depths(self) -> dict[str, int]:
        """How many tasks are queued, by work."""
        return self._dispatch.depths()

    def queued(self, work: str) -> int:
        """How many tasks of this work are queued."""
        return self._dispatch.depth(work)

    def instances_up(self) -> dict[str, int]:
        """How many instances are up, by work they can run."""
        return self._dispatch.instances_up()

    def running(self) -> dict[str, int | None]:
        """The instances that are up, as far as reported, and the unit that each one runs."""
        return {name: unit.id if unit else None for name, unit in self._running.items()}

    def instances(self) -> list[tuple[str, State]]:
        """Every instance that has joined and not left, and how it is."""
        return self._health.states()

    def size(self) -> int:
        """How many things are remembered; bounded by the policy's padding when none is pending."""
        return (
            len(self._queries)
            + len(self._waiting)
            + len(self._units)
            + len(self._decodes)
            + len(self._overdue)
            + len(self._holds)
            + len(self._timers)
            + len(self._dispatch)
            + len(self._poison)
        )

    # The port: port.py says what these do

    @property
    def max_batch(self) -> int:
        return self._config.max_batch

    @property
    def nodes(self) -> int:
        return self._dispatch.nodes

    def pending_query(self, query: int) -> Query | None:
        return self._queries.get(query)

    def is_placed(self, task: Task) -> bool:
        return self._dispatch.where(task) is not None

    def beside(self, task: Task, others: Iterable[Task]) -> bool:
        return self._dispatch.beside(task, others)

    def submit(
        self, work: str, subject: int, kind: Hashable, apart: list[Task], *, spare: bool = False
    ) -> Task:
        task = Task(work, subject, kind, spare=spare, apart=[apart])
        apart.append(task)
        self._queue(task)
        return task

    def copy(self, query: Query, *, spare: bool = False) -> None:
        # Copies go to the head of the queue: they are as old as their query.
        if query.id not in self._queries:
            return
        group = query.original.group
        task = Task(DEPLOYED, query.id, query.kind, group, spare, apart=[query.tasks])
        query.tasks.append(task)
        self._queue(task, first=True)

    def hurry(self, task: Task) -> None:
        if task.wanted and task.unit is None:
            self._dispatch.remove(task)
            task.spare = False
            self._queue(task)

    def drop(self, task: Task) -> None:
        if not task.wanted:
            return
        task.wanted = False
        task.apart.clear()  # breaks a reference cycle, so that memory is freed at once
        unit = task.unit
        if unit is None:
            self._dispatch.remove(task)
        elif not any(other.wanted for other in unit.tasks):
            self._emit(Cancel(unit.instance, unit.id))

    def keep_apart(self, query: Query, apart: list[Task], group: int | None = None) -> None:
        original = query.original
        apart.append(original)
        original.apart.append(apart)
        if group is not None:
            for task in query.tasks:
                task.group = group

    def keep_idle(self, instances: int) -> None:
        self._dispatch.reserve = instances

    def set_timer(
        self, at: float, callback: Callable[[], None], about: Collection[int] = ()
    ) -> Timer:
        return self._timers.set(at, partial(self._tell, about, callback))

    def cancel_timer(self, timer: Timer | None) -> None:
        self._timers.cancel(timer)

    def set_alarm(self, query: Query, at: float, callback: Callable[[], None]) -> None:
        self._timers.cancel(query.alarm)
        query.alarm = self.set_timer(at, callback, (query.id,))

    def encode(self, encode: Encode) -> None:
        self._emit(encode)

    def decode(self, decode: Decode) -> None:
        for slot in decode.slots:
            self._queries[decode.members[slot]].decoding = True
        self._decodes.setdefault(decode.group, []).append(decode)
        self._deciding = True
        self._emit(decode)

    def forget_group(self, group: int) -> None:
        self._emit(ForgetGroup(group))

    def answer(self, query: Query, source: Source) -> None:
        self._emit(Answer(query.id, source))
        self._admission.answered()
        self._resolve(query)

    def fail(self, query: Query, reason: Reason, detail: str) -> None:
        self._emit(Fail(query.id, reason, detail))
        self._resolve(query)

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

    def units(self) -> list[Unit]:
        return list(self._units.values())

    def verify(self, instance: str, work: str, probe: int) -> None:
        unit = Unit(self._new_id(), instance, [], self.now, golden=work)
        self._units[unit.id] = unit
        self._running[instance] = unit
        self._health.started(unit)
        self._emit(Verify(instance, unit.id, work, probe))

    def recycle(self, instance: str, reason: RecycleReason, why: str) -> None:
        self._emit(Recycle(instance, reason, why))

    def queue_again(self, query: Query, task: Task) -> None:
        self._queue(task, first=True)
        if not any(copy.unit for copy in query.tasks):
            self._waiting.add(query.id)

    # Inside

    def _emit(self, action: Action) -> None:
        self._actions.append(action)

    def _new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _advance(self, now: float) -> None:
        self.now = max(self.now, now)

    def _done(self) -> list[Action]:
        """Timers that are due come after what the event said, and before anything is started."""
        self._settle()
        # What is decoded needs no instance, if it can be right: that is reported at once.
        while not self._deciding and self._start_units():
            self._settle()
        self._deciding = False
        if self._forgotten:
            self._emit(ForgetQueries(tuple(self._forgotten)))
            self._forgotten.clear()
        self._ask_for_wake_up()
        actions, self._actions = self._actions, []
        return actions

    def _settle(self) -> None:
        """Let timers fire that are due, and fail what the policy failed."""
        self._timers.fire(self.now)
        while self._broken:
            query_id, detail = self._broken.pop()
            query = self._queries.get(query_id)
            if query is not None:
                self.fail(query, Reason.INTERNAL, detail)
        self._poison.retry()

    def _fail_all(
        self, now: float, queries: Iterable[int], reason: Reason, detail: str
    ) -> list[Action]:
        self._advance(now)
        for query_id in queries:
            query = self._queries.get(query_id)
            if query is None:
                continue
            if reason is Reason.ABANDONED:
                self._admission.given_up(self.now, self.now - query.arrived)
            self.fail(query, reason, detail)
        return self._done()

    def _tell(
        self, about: Collection[int], hook: Callable[..., None], *args: Any, **options: Any
    ) -> None:
        """Call a hook of the policy's; if it raises, the queries `about` which it was fail soon."""
        try:
            hook(*args, **options)
        except Exception as error:
            _log.exception("the policy failed")
            self._broken += [(query, f"the policy failed: {error!r}") for query in about]

    def _queue(self, task: Task, *, first: bool = False) -> None:
        """Queue a task that is still wanted and not running: no other is ever queued."""
        if task.wanted and task.unit is None:
            self._dispatch.add(task, first=first)

    def _start_units(self) -> bool:
        """Give idle instances what they can run; was there anything?"""
        started = False
        for instance, tasks in self._dispatch.assign(self._config.max_batch):
            started = True
            unit = Unit(self._new_id(), instance, tasks, self.now)
            self._units[unit.id] = unit
            self._running[instance] = unit
            if unit.is_original:
                self._admission.started(self.now)
            for task in tasks:
                task.unit = unit
                if task.work == DEPLOYED:
                    self._waiting.discard(task.subject)
                    self._tell((task.subject,), self._policy.starts, self, task)
                else:
                    self._tell((), self._policy.redundancy_starts, self, task)
            self._health.started(unit)
            subjects = tuple(task.subject for task in tasks)
            self._emit(Run(instance, unit.id, tasks[0].work, subjects))
        return started

    def _ask_for_wake_up(self) -> None:
        # A wake-up that comes too early does no harm and asks again, so that most events,
        # which only remove the earliest timer, need not replace the driver's.
        if self._wake_at is not None and self._wake_at <= self.now:
            self._wake_at = None
        at = self._timers.next()
        if at is not None and (self._wake_at is None or at < self._wake_at):
            self._wake_at = at
            self._emit(WakeAt(at))

    def _end(self, unit_id: int, *, finished: bool, rest: float = 0.0) -> Unit | None:
        """Take a unit off its instance, which then rests; None if there is nothing to be had of it:
        its instance had left before, or it was a golden query."""
        unit = self._units.pop(unit_id, None)
        if unit is None:
            return None
        self._running[unit.instance] = None
        if unit.golden is not None:
            self._health.not_verified(unit, rest=rest)
            return None
        self._health.ended(unit, finished=finished, rest=rest)
        for task in unit.tasks:
            task.unit = None
        self._ended(unit, finished=finished)
        return unit

    def _ended(self, unit: Unit, *, finished: bool) -> None:
        if unit.is_original:
            up = self._dispatch.up(DEPLOYED)
            self._admission.ended(self.now, unit, finished=finished, instances=up)
        self._tell((), self._policy.unit_ended, self, unit, finished=finished)

    def _settle_decode(self, group: int, wrong: Collection[int]) -> None:
        """The first Decode of the group that is not reported yet is carried out."""
        decodes = self._decodes.get(group)
        if not decodes:
            return
        decode = decodes.pop(0)
        if not decodes:
            del self._decodes[group]
        for slot in decode.slots:
            query = self._queries.get(decode.members[slot])
            if query is None:
                continue
            query.decoding = False
            if slot in wrong:
                query.spoiled = True
            else:
                self.answer(query, Source.RECONSTRUCTION)

    def _lose(self, unit: Unit, detail: str, *, turned_away: bool = False) -> None:
        for task in reversed(unit.tasks):
            if not task.wanted:
                continue
            task.failed_on.append(unit.instance)
            task.turned_away += turned_away
            query = self._queries.get(task.subject) if task.work == DEPLOYED else None
            if len(task.failed_on) - task.turned_away < self._config.max_attempts:
                # One that failed with different instances may fail whatever shares its batch.
                task.alone = task.alone or len(task.failed_on) - task.turned_away > 1
                if query is None:
                    self._queue(task, first=True)
                else:
                    self.queue_again(query, task)
                    self._tell((query.id,), self._policy.urgent, self, query)
                continue
            task.wanted = False
            if query is not None and not any(copy.wanted for copy in query.tasks):
                tries = f"tried {len(task.failed_on)} times; the last time: {detail}"
                self.fail(query, Reason.INSTANCES_FAILED, tries)

    def _too_late(self, query: Query) -> None:
        """A query that still waits will not be in time: it makes room, if others wait as well."""
        room = self._config.max_batch * self._dispatch.idle_for(DEPLOYED)
        hopeless = query.id in self._waiting and len(self._waiting) > room
        if query.due > self.now and not (hopeless and not self._policy.may_answer(self, query)):
            query.timer = self._timers.set(query.due, partial(self._expire, query))
        else:
            self._expire(query)

    def _expire(self, query: Query) -> None:
        self._tell((query.id,), self._policy.urgent, self, query)
        if query.id not in self._queries:
            return
        if query.decoding:
            self._overdue.append(query)
        else:
            self._give_up(query)

    def _give_up(self, query: Query) -> None:
        """Its deadline is past, and no reconstruction is there."""
        if self._config.default_prediction:
            self.answer(query, Source.DEFAULT)
        else:
            waited = f"no answer within {self.now - query.arrived:.3f} s"
            self.fail(query, Reason.DEADLINE_EXCEEDED, waited)

    def _resolve(self, query: Query) -> None:
        del self._queries[query.id]
        if query in self._overdue:
            self._overdue.remove(query)
        if query.id in self._waiting:
            self._waiting.remove(query.id)
        else:
            self._admission.query_ended()
        self._timers.cancel(query.timer)
        self._timers.cancel(query.alarm)
        for task in query.tasks:
            self.drop(task)
        self._tell((), self._policy.resolved, self, query)
        self.release(query.id)
