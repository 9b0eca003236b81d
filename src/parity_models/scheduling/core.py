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
  had otherwise. It acts through the port (port.py).
- *Holds* count who may still need a query's tensors: the query itself while unanswered, its
  coding group, the padding kept for lonely queries. The last one to let go makes the driver
  forget them.

A query is admitted or refused when it arrives. At its deadline it is answered by whatever can be
had (the policy is asked for it), else by the default prediction, or fails. One that still waits for
an instance when it can no longer be in time makes room before, if others wait as well.

`Scheduler` has the events and decides how queries and units begin and end. `SchedulerPort` holds
what is known, and has the verbs that change it.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
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
    Run,
    Source,
    Verify,
    WakeAt,
    source_of,
)
from parity_models.scheduling.admission import Admission, Refusal
from parity_models.scheduling.background import BackgroundComparison
from parity_models.scheduling.config import SchedulerConfig
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.front_door import FrontDoor, Redundancy
from parity_models.scheduling.health import Health, Poison, State
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.timers import LEAST_DELAY, Timer, Timers
from parity_models.scheduling.work import Query, Task, Unit

_log = logging.getLogger(__name__)


class Scheduler:
    """Events in, actions out; see the theory of operation above. Times in seconds.

    The contract with the driver: it reports what happened to one instance in order, but an event
    may be reported late, after timers that were due before it, or twice, or for a unit or an
    instance that is gone. What an event says counts before timers that have become due in the
    meantime: an output that is here answers its query, however late it is. An event that says
    nothing new is ignored. A `Cancel` or `Compare` may come for a unit that has ended but
    is not reported yet; the driver ignores it. If a hook of the policy raises, the queries that it
    was about fail as INTERNAL, and all else goes on.

    Raises ValueError for a query id that is in use: the only thing that no lateness explains.
    """

    def __init__(
        self,
        policy: Policy,
        config: SchedulerConfig | None = None,
        dispatch: Dispatch | None = None,
    ) -> None:
        self._policy = policy
        self._config = config or SchedulerConfig()
        self._dispatch = policy.dispatch() if dispatch is None else dispatch
        self._port = port = SchedulerPort(policy, self._config, self._dispatch)
        self._admission = port.admission
        self._health = Health(port, self._dispatch, self._config)
        self._poison = Poison(port, policy, self._dispatch, self._config.max_attempts)
        self._overdue: list[Query] = []
        """Those past their deadline, and being decoded."""

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
        queries of the same `tenant`, and those that are `exact` with none. Raises ValueError for
        one that is here already.
        """
        port, admission = self._port, self._admission
        for query_id in queries:
            if port.remembers(query_id):
                raise ValueError(f"query {query_id} is here already; ids must be unique")
        self._advance(now)
        port.timers.fire(port.now)  # what has expired does not wait
        due = now + self._config.deadline if deadline is None else deadline
        refusal = admission.refusal(
            port.now,
            due,
            len(queries),
            waiting=len(port.waiting),
            instances=self._dispatch.up(DEPLOYED),
            idle=partial(self._dispatch.idle_for, DEPLOYED),
            lag=port.front_door.lag,
        )
        if refusal is not None:
            port.refuse(queries, refusal)
            return self._done()
        # Once it is too late to start it, it is looked at whether it still waits.
        too_late = due - admission.typical_run
        for query_id in queries:
            original = Task(DEPLOYED, query_id, kind)
            query = Query(query_id, kind, now, [original], due, tenant, query_id in exact)
            query.backups = () if query.exact else self._policy.asks.backups
            original.apart.append(query.tasks)
            query.timer = port.timers.set(too_late, partial(self._too_late, query))
            port.admit(query)
            self._dispatch.add(original)
            port.tell((query_id,), self._policy.arrived, port, query)
        return self._done()

    def queries_abandoned(self, now: float, queries: Iterable[int]) -> list[Action]:
        """Nobody waits for these queries any more; those that are pending end."""
        self._advance(now)
        self._fail(queries, Reason.ABANDONED, "its client has given up")
        return self._done()

    def queries_failed(self, now: float, queries: Iterable[int], detail: str) -> list[Action]:
        """The driver could not carry out an action for these queries; those pending fail."""
        self._advance(now)
        self._fail(queries, Reason.INTERNAL, detail)
        return self._done()

    def unit_finished(
        self,
        now: float,
        unit: int,
        unusable: Collection[int] = (),
        *,
        ended_at: float | None = None,
    ) -> list[Action]:
        """An instance has run a unit; the driver holds its outputs.

        The outputs for the subjects `unusable` cannot be right, or may not be given: a stand-in's
        answers nobody, and a prediction of the deployed model is the answer to its own query only.
        `ended_at` is when the instance was done, by this clock, if it says so: the report has
        waited since.
        """
        self._advance(now)
        port = self._port
        port.reported(unit, ended_at)
        ended = self._end(unit, finished=True)
        if ended is None or ended.is_comparison:
            return self._done()
        for task in ended.tasks:
            usable = task.subject not in unusable
            if task.role != DEPLOYED:
                if usable:
                    port.tell((), self._policy.redundancy_finished, port, task)
                elif task.role in BACKUPS:
                    self._refused(task.subject, source_of(task.role))
                continue
            if usable:
                port.tell((task.subject,), self._policy.predicted, port, task)
            query = port.queries.get(task.subject)
            if query is not None:
                port.background.answered(query)
                port.answer(query, Source.MODEL)
        return self._done()

    def unit_failed(self, now: float, unit: int, detail: str, *, busy: float = 0.0) -> list[Action]:
        """A unit failed on an instance that is still up (or was cancelled).

        `busy`: the instance has turned it away, which is nobody's failure, and gets no unit for so
        many seconds.
        """
        self._advance(now)
        ended = self._end(unit, finished=False, rest=busy)
        if ended is not None:
            self._try_again(ended, detail, turned_away=busy > 0)
        return self._done()

    def decoded(self, now: float, group: int, wrong: Collection[int] = ()) -> list[Action]:
        """A Decode has been carried out; the reconstructions of the slots `wrong` may not be given.

        They cannot be right, or are not likely enough to be. To be reported for every Decode, as
        soon as the actions beside it have been carried out.
        """
        self._advance(now)
        for slot, query_id in self._port.take_decode(group):
            query = self._port.queries.get(query_id)
            if query is None:
                continue
            if slot in wrong:
                query.decoding = False
                self._refused(query.id, Source.RECONSTRUCTION)
            else:
                self._port.answer(query, Source.RECONSTRUCTION)
        overdue, self._overdue = self._overdue, []
        for query in overdue:
            if query.id not in self._port.queries:
                continue
            if query.decoding:
                self._overdue.append(query)
            else:
                self._give_up(query)
        return self._done()

    def instance_joined(
        self, now: float, instance: str, roles: frozenset[str], node: str | None = None
    ) -> list[Action]:
        """An instance is up, idle, and can run these roles; None: it has a node to itself."""
        self._advance(now)
        if instance not in self._port.running:
            self._port.running[instance] = None
            self._health.joined(instance, roles, node)
        return self._done()

    def instance_left(self, now: float, instance: str) -> list[Action]:
        """An instance is gone, and what it was running with it."""
        self._advance(now)
        port = self._port
        if instance not in port.running:
            return self._done()
        unit = port.running.pop(instance)
        if unit is not None:
            del port.units[unit.id]
            for task in unit.tasks:
                task.unit = None
        self._health.left(instance)
        if unit is not None and unit.tasks:
            self._unit_ended(unit, finished=False)
            if not unit.is_comparison:
                self._poison.lost(unit)
        return self._done()

    def unit_verified(self, now: float, unit: int, right: bool) -> list[Action]:
        """An instance has answered the golden query of a Verify, and the answer is right or not."""
        self._advance(now)
        known = self._port.units.get(unit)
        if known is not None and known.golden is not None:
            self._port.end(unit)
            self._health.verified(known, right=right)
        return self._done()

    def compared(self, now: float, instance: str, agreed: bool) -> list[Action]:
        """A prediction of this instance agrees with what would have replaced it, or does not."""
        self._advance(now)
        self._health.compared(instance, agreed=agreed)
        return self._done()

    def gate_turned(self, now: float, source: Source, is_open: bool) -> list[Action]:
        """The gate of this source has opened or closed: it may answer, or may not until it opens.

        All are open at first. The outputs of one that is closed are told to be unusable or wrong.
        """
        self._advance(now)
        self._port.background.gate_turned(source, is_open=is_open)
        return self._done()

    def process_measured(self, now: float, lag: float, busy: float) -> list[Action]:
        """A timer of the driver's own was `lag` seconds late, and its process has used the share
        `busy` of a core since the last time."""
        self._advance(now)
        self._port.front_door.busy = busy
        self._port.waited(lag)
        return self._done()

    def redundancy_switched(self, now: float, on: bool) -> list[Action]:
        """From now on redundant work is sent, or none; it is at first."""
        self._advance(now)
        self._port.redundancy_on = on
        return self._done()

    def time_passed(self, now: float) -> list[Action]:
        """It is `now`; the driver calls this at the time of the last WakeAt."""
        self._advance(now)
        return self._done()

    # What a driver may ask

    @property
    def pending(self) -> int:
        """How many queries have been neither answered nor failed."""
        return self._port.pending

    def queue_depths(self) -> dict[str, int]:
        """How many tasks are queued, by role."""
        return self._dispatch.depths()

    def instances_up(self) -> dict[str, int]:
        """How many instances are up, by role they can run."""
        return self._dispatch.instances_up()

    def capacity(self, now: float) -> float:
        """Queries a second that admission takes the instances to answer at most; 0: unknown."""
        return self._port.admission.capacity(now, self._dispatch.up(DEPLOYED))

    def work_held_back(self) -> dict[str, int]:
        """How often a late query was not sent to a role, as the budget or the load forbade it."""
        return dict(self._port.work_held_back)

    @property
    def redundancy(self) -> Redundancy:
        """Whether redundant work is sent now, or why not."""
        port = self._port
        return self._policy.redundancy(port) if port.redundancy_on else Redundancy.OFF

    @property
    def front_door(self) -> FrontDoor:
        """How late and how busy the driver's process is."""
        return self._port.front_door

    def running(self) -> dict[str, int | None]:
        """The instances that are up, as far as reported, and the unit that each one runs."""
        return {name: unit.id if unit else None for name, unit in self._port.running.items()}

    def instances(self) -> list[tuple[str, State]]:
        """Every instance that has joined and not left, and how it is."""
        return self._health.states()

    def size(self) -> int:
        """How many things are remembered; bounded by the policy's padding when none is pending."""
        return len(self._port) + len(self._overdue) + len(self._poison) + len(self._dispatch)

    # Queries

    def _fail(self, queries: Iterable[int], reason: Reason, detail: str) -> None:
        """Fail those of the queries that are pending."""
        for query_id in queries:
            query = self._port.queries.get(query_id)
            if query is not None:
                self._port.fail(query, reason, detail)

    def _refused(self, query_id: int, source: Source) -> None:
        """What a stand-in says to the query may not be given; it waits for the model, or for one
        of the backups that come after this one, which are slower and better."""
        query = self._port.queries.get(query_id)
        if query is not None and not query.spoiled:
            # No source comes after that of a reconstruction.
            query.backups = tuple(role for role in query.backups if role > source)
            query.spoiled = not query.backups
            query.refusals += 1
            self._port.tell((query_id,), self._policy.refused, self._port, query, source)

    def _too_late(self, query: Query) -> None:
        """A query that still waits will not be in time: it makes room, if others wait as well."""
        port = self._port
        room = self._config.max_batch * self._dispatch.idle_for(DEPLOYED)
        hopeless = query.id in port.waiting and len(port.waiting) > room
        if query.due > port.now and not (hopeless and not self._policy.may_answer(port, query)):
            query.timer = port.timers.set(query.due, partial(self._expire, query))
        else:
            self._expire(query)

    def _expire(self, query: Query) -> None:
        self._port.tell((query.id,), self._policy.urgent, self._port, query)
        if query.id not in self._port.queries:
            return
        if query.decoding:
            self._overdue.append(query)
        else:
            self._give_up(query)

    def _give_up(self, query: Query) -> None:
        """Its deadline is past, and no reconstruction is there."""
        if self._config.default_prediction:
            self._port.answer(query, Source.DEFAULT)
        else:
            waited = f"no answer within {self._port.now - query.arrived:.3f} s"
            self._port.fail(query, Reason.DEADLINE_EXCEEDED, waited)

    # Units

    def _start(self) -> bool:
        """Give idle instances what they can run; was there anything?"""
        port = self._port
        started = False
        for instance, tasks in self._dispatch.assign(self._config.max_batch):
            started = True
            unit = port.begin(instance, tasks)
            if unit.is_original:
                self._admission.started(port.now)
            for task in tasks:
                task.unit = unit
                if task.comparing:
                    continue
                if task.role == DEPLOYED:
                    port.waiting.discard(task.subject)
                    port.tell((task.subject,), self._policy.starts, port, task)
                else:
                    port.tell((), self._policy.redundancy_starts, port, task)
            self._health.started(unit)
            subjects = tuple(task.subject for task in tasks)
            run = Run(instance, unit.id, tasks[0].role, subjects)
            port.actions += port.background.starts(unit, run) if unit.is_comparison else [run]
        return started

    def _end(self, unit_id: int, *, finished: bool, rest: float = 0.0) -> Unit | None:
        """Take a unit off its instance, which then rests; None if there is nothing to be had of it:
        its instance had left before, or it was a golden query."""
        unit = self._port.end(unit_id)
        if unit is None:
            return None
        if unit.golden is not None:
            self._health.not_verified(unit, rest=rest)
            return None
        self._health.ended(unit, finished=finished, rest=rest)
        for task in unit.tasks:
            task.unit = None
        self._unit_ended(unit, finished=finished)
        return unit

    def _try_again(self, unit: Unit, detail: str, *, turned_away: bool) -> None:
        """Try the tasks of a failed unit again, unless that has been done as often as it may."""
        port = self._port
        for task in reversed(unit.tasks):
            if not task.wanted:
                continue
            task.failed_on.append(unit.instance)
            task.turned_away += turned_away
            query = port.queries.get(task.subject) if task.role == DEPLOYED else None
            tries = len(task.failed_on)
            if tries - task.turned_away < self._config.max_attempts:
                # One that failed with different instances may fail whatever shares its batch.
                task.alone = task.alone or tries - task.turned_away > 1
                port.queue_again(task)
                if query is not None:
                    port.tell((query.id,), self._policy.urgent, port, query)
                continue
            task.wanted = False
            if query is not None and not any(copy.wanted for copy in query.tasks):
                tried = f"tried {tries} times; the last time: {detail}"
                port.fail(query, Reason.INSTANCES_FAILED, tried)

    def _unit_ended(self, unit: Unit, *, finished: bool) -> None:
        if unit.is_original:
            up = self._dispatch.up(DEPLOYED)
            self._admission.ended(self._port.now, unit, finished=finished, instances=up)
        if not unit.is_comparison:
            self._port.tell((), self._policy.unit_ended, self._port, unit, finished=finished)

    # Between events

    def _advance(self, now: float) -> None:
        if now > self._port.now:
            self._port.now = now

    def _done(self) -> list[Action]:
        """Timers that are due come after what the event said, and before anything is started."""
        self._settle()
        # What is decoded needs no instance, if it can be right: that is reported at once.
        while not self._port.deciding and self._start():
            self._settle()
        self._port.background.settle()
        return self._port.take_actions()

    def _settle(self) -> None:
        """Let timers fire that are due, and fail what the policy failed."""
        port = self._port
        port.timers.fire(port.now)
        while port.broken:
            query_id, detail = port.broken.pop()
            self._fail([query_id], Reason.INTERNAL, detail)
        self._poison.retry()


class SchedulerPort:
    """Holds queries, tasks, units and timers, and has the verbs that change them (see port.py).

    Policies see it as a `Port`; the classes of this module also use its public fields. Times in
    seconds.
    """

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
