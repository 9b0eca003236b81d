"""The scheduler: everything that decides what runs where and when a query is answered.

Theory of operation. A driver (the asyncio frontend, the simulator, a test) reports events by
calling the methods of `Scheduler`, and carries out the actions that they return, in order. Nothing
here waits, sleeps or reads a clock: the same events give the same actions.

- A *query* is pending from `queries_arrived` until it is answered or failed, once. Its deadline is
  a timer; whatever happens, it ends then.
- A *task* is one row of work for one model: the query itself for the deployed model, a parity
  query for a parity model. It is queued, then running as part of a unit, then over.
- A *unit* is the batch of tasks that one instance runs. An instance runs one unit at a time.
  The tasks of a failed unit, or of an instance that left, go back to the head of the queue.
- A *node* is what instances fail with: their machine. A query and its copies, and the units of a
  coding group, run on different nodes, as far as there are instances on enough of them.
- The *policy* (policies/) decides what is sent besides the originals and when an answer can be
  had otherwise. It acts through the port (port.py), which is this scheduler's state and verbs.
- *Holds* count who may still need a query's tensors: the query itself while pending, its coding
  group, the padding kept for lonely queries. When the last is released, the driver forgets them.

States of a query, and what moves it on:

    waiting    no task of it runs. Admission (admission.py) has taken it; the dispatch rule
               (dispatch.py) gives its original to an instance. Once it is too late to start it, it
               makes room if others wait as well.
    running    a task of it runs. If that fails or its instance is lost, it waits again, up to
               max_attempts times, or is tried alone as a suspect (poison.py).
    decoding   it is being reconstructed, until the driver reports `decoded`.
    over       answered by the model or a stand-in, or failed. At its deadline it is answered by
               whatever can be had (the policy is asked for it), else by the default prediction, or
               fails.

A turn: an event first says what it says, then timers that are due fire, then idle instances get
tasks; the last two by turns until nothing more happens. Health (health.py) hears of every unit and
decides which instances the dispatch rule has.
"""

import heapq
from collections.abc import Collection, Hashable, Iterable, Sequence
from functools import partial
from operator import attrgetter

from parity_models.scheduling.actions import (
    BACKUPS,
    DEPLOYED,
    Action,
    Fail,
    ForgetQueries,
    Reason,
    Run,
    Source,
    WakeAt,
    source_of,
)
from parity_models.scheduling.admission import Admission
from parity_models.scheduling.background import BackgroundComparison
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.front_door import Redundancy
from parity_models.scheduling.health import Health, State
from parity_models.scheduling.poison import Poison
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query, SchedulerConfig, Task, Unit

_SUBJECT = attrgetter("subject")


class Scheduler(Port):
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
        config = config or SchedulerConfig()
        super().__init__(config, policy.dispatch() if dispatch is None else dispatch)
        self._policy = policy
        self._admission = Admission(config, self.dispatch)
        self._health = Health(self)
        self._poison = Poison(self, policy)
        self._background = BackgroundComparison(self, policy.asks)
        self._overdue: list[Query] = []
        """Queries past their deadline that are being decoded."""
        self._wake_at: float | None = None

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
        an id that is in use.
        """
        for query_id in queries:
            if query_id in self._holds:
                raise ValueError(f"query {query_id} is here already; ids must be unique")
        self.now = max(self.now, now)
        if self._timers and self._timers[0][0] <= self.now:
            self._fire_timers()  # what has expired does not wait
        due = now + self.config.deadline if deadline is None else deadline
        lag = self.front_door.lag
        refusal = self._admission.refusal(
            self.now, due, len(queries), waiting=len(self._waiting), lag=lag
        )
        if refusal is not None:
            for query_id in queries:
                why = (refusal.reason, refusal.detail, refusal.retry_after)
                self._actions.append(Fail(query_id, *why))
                self._forgotten.append(query_id)
            return self._turn()
        # Once it is too late to start it, it makes room for others.
        too_late = due - self._admission.typical_run
        for query_id in queries:
            original = Task(DEPLOYED, query_id, kind)
            query = Query(query_id, kind, now, due, original, [original], tenant, query_id in exact)
            original.apart.append(query.tasks)
            if not query.exact:
                query.backups = self._policy.asks.backups
            query.timer = self._start_timer(too_late, partial(self._too_late, query))
            self.queries[query_id] = query
            self._waiting.add(query_id)
            self._holds[query_id] = 1
            self.dispatch.add(original)
            try:
                self._policy.arrived(self, query)
            except Exception as error:
                self._on_error(error, (query_id,))
        return self._turn()

    def queries_abandoned(self, now: float, queries: Iterable[int]) -> list[Action]:
        """The client has given up these queries; those that are pending end."""
        self.now = max(self.now, now)
        self._fail_all(queries, Reason.ABANDONED, "its client has given up")
        return self._turn()

    def queries_failed(self, now: float, queries: Iterable[int], detail: str) -> list[Action]:
        """The driver could not carry out an action for these queries; those pending fail."""
        self.now = max(self.now, now)
        self._fail_all(queries, Reason.INTERNAL, detail)
        return self._turn()

    def unit_finished(
        self,
        now: float,
        unit: int,
        unusable: Collection[int] = (),
        *,
        ended_at: float | None = None,
    ) -> list[Action]:
        """An instance has run a unit; the driver holds its outputs.

        The outputs for the subjects `unusable` cannot be right, or are rejected: a stand-in's
        answers no query, and a prediction of the deployed model answers its own query only.
        `ended_at` is when the instance was done, by this clock, if it says so: the report has
        waited since.
        """
        self.now = now = max(self.now, now)
        known = self.units.get(unit)
        if known is not None and ended_at is not None and known.started <= ended_at <= now:
            self.front_door.waited(now - ended_at, self._admission.typical_run)
        else:
            ended_at = now
        if known is None or not self._end_unit(known, ended_at, finished=True):
            return self._turn()
        policy = self._policy
        for task in known.tasks:
            usable = task.subject not in unusable
            if task.role != DEPLOYED:
                if usable:
                    self.tell((), policy.redundancy_finished, self, task)
                elif task.role in BACKUPS:
                    self._reject(task.subject, source_of(task.role))
                continue
            if usable:
                try:
                    policy.on_prediction(self, task)
                except Exception as error:
                    self._on_error(error, (task.subject,))
            query = self.queries.get(task.subject)
            if query is not None:
                if self.now >= self._background.due:
                    self._background.answered(query)
                self.answer(query, Source.MODEL)
        return self._turn()

    def unit_failed(self, now: float, unit: int, detail: str, *, busy: float = 0.0) -> list[Action]:
        """A unit failed on an instance that is still up (or was cancelled).

        `busy`: the instance has turned it away, which is no failure, and gets no unit for this many
        seconds.
        """
        self.now = max(self.now, now)
        known = self.units.get(unit)
        if known is not None and self._end_unit(known, self.now, rest=busy):
            self._try_again(known, detail, turned_away=busy > 0)
        return self._turn()

    def decoded(self, now: float, group: int, wrong: Collection[int] = ()) -> list[Action]:
        """The oldest Decode of the group has been carried out.

        The reconstructions of the slots `wrong` are rejected: they cannot be right, or are not
        likely enough to be. To be reported for every Decode, as soon as the actions returned with
        it have been carried out.
        """
        self.now = max(self.now, now)
        decodes = self._decodes.get(group)
        if decodes:
            decode = decodes.pop(0)
            if not decodes:
                del self._decodes[group]
            for slot in decode.slots:
                query = self.queries.get(decode.members[slot])
                if query is None:
                    continue
                if slot in wrong:
                    query.decoding = False
                    self._reject(query.id, Source.RECONSTRUCTION)
                else:
                    self.answer(query, Source.RECONSTRUCTION)
        overdue, self._overdue = self._overdue, []
        for query in overdue:
            self._expire_unless_decoding(query)
        return self._turn()

    def instance_joined(
        self, now: float, instance: str, roles: frozenset[str], node: str | None = None
    ) -> list[Action]:
        """An instance is up, idle, and can run these roles; without a `node` it has its own."""
        self.now = max(self.now, now)
        if instance not in self.unit_on:
            self.unit_on[instance] = None
            self._health.joined(instance, roles, node)
        return self._turn()

    def instance_left(self, now: float, instance: str) -> list[Action]:
        """An instance is gone, and the unit that it was running with it."""
        self.now = max(self.now, now)
        if instance not in self.unit_on:
            return self._turn()
        unit = self.unit_on.pop(instance)
        for task in unit.tasks if unit is not None else ():
            task.unit = task.instance = None
        self._health.left(instance)
        if unit is not None and self._end_unit(unit, self.now, lost=True):
            self._poison.lost(unit)
        return self._turn()

    def unit_verified(self, now: float, unit: int, right: bool) -> list[Action]:
        """An instance has answered the golden query of a Verify, rightly or not."""
        self.now = max(self.now, now)
        known = self.units.get(unit)
        if known is not None and not known.tasks:
            del self.units[unit]
            self.unit_on[known.instance] = None
            self._health.verified(known, right=right)
        return self._turn()

    def compared(self, now: float, instance: str, agreed: bool) -> list[Action]:
        """A prediction of this instance agrees with what would have replaced it, or does not."""
        self.now = max(self.now, now)
        self._health.compared(instance, agreed=agreed)
        return self._turn()

    def gate_turned(self, now: float, source: Source, is_open: bool) -> list[Action]:
        """The gate of this source has opened or closed; all are open at first.

        The driver reports the outputs of one that is closed as unusable or wrong.
        """
        self.now = max(self.now, now)
        closed = self._background.closed
        (closed.discard if is_open else closed.add)(source)
        return self._turn()

    def process_measured(self, now: float, lag: float, busy: float) -> list[Action]:
        """A timer of the driver's own was `lag` seconds late, and its process has used the share
        `busy` of a core since the last time."""
        self.now = max(self.now, now)
        self.front_door.busy = busy
        self.front_door.waited(lag, self._admission.typical_run)
        return self._turn()

    def redundancy_switched(self, now: float, on: bool) -> list[Action]:
        """From now on redundant work is sent, or none; it is at first."""
        self.now = max(self.now, now)
        self.redundancy_on = on
        return self._turn()

    def time_passed(self, now: float) -> list[Action]:
        """It is `now`; the driver calls this at the time of the last WakeAt."""
        self.now = max(self.now, now)
        return self._turn()

    # Questions of the driver

    @property
    def pending(self) -> int:
        """How many queries have been neither answered nor failed."""
        return len(self.queries)

    def queue_depths(self) -> dict[str, int]:
        """Return how many tasks are queued, by role."""
        return dict(self.dispatch.depths)

    def instances_up(self) -> dict[str, int]:
        """Return how many instances are up, by role they can run."""
        return {role: len(names) for role, names in self.dispatch.up.items() if names}

    def capacity(self, now: float) -> float:
        """Return the queries a second that admission expects the instances to answer at most; 0:
        unknown."""
        return self._admission.capacity(now)

    def work_held_back(self) -> dict[str, int]:
        """Return how often the budget or the load kept a late query from being sent, by role."""
        return dict(self._held_back)

    @property
    def redundancy(self) -> Redundancy:
        """Whether redundant work is sent now, or why not."""
        return self._policy.redundancy(self) if self.redundancy_on else Redundancy.OFF

    def running(self) -> dict[str, int | None]:
        """Return the instances that are up, as far as reported, and the unit that each one runs."""
        return {name: unit.id if unit else None for name, unit in self.unit_on.items()}

    def instances(self) -> list[tuple[str, State]]:
        """Return every instance that has joined and not left, and how it is."""
        return self._health.states()

    def size(self) -> int:
        """Return how many things are remembered; few if no query is pending."""
        known = (self.queries, self._waiting, self.units, self._decodes, self._holds, self._timers)
        others = (self._overdue, self._poison.set_aside)
        comparing = self._background.task is not None
        return sum(map(len, (*known, *others))) + sum(self.dispatch.depths.values()) + comparing

    # Queries

    def _fail_all(self, queries: Iterable[int], reason: Reason, detail: str) -> None:
        """Fail those of the queries that are pending."""
        for query_id in queries:
            query = self.queries.get(query_id)
            if query is not None:
                self.fail(query, reason, detail)

    def _reject(self, query_id: int, source: Source) -> None:
        """A stand-in's output was rejected. The query now needs the model, or one of the backups
        that come after this one, which are slower and better."""
        query = self.queries.get(query_id)
        if query is not None and not query.exact_only:
            # No source comes after that of a reconstruction.
            query.backups = tuple(role for role in query.backups if role > source)
            query.exact_only = not query.backups
            query.refusals += 1
            self.tell((query_id,), self._policy.refused, self, query, source)

    def _too_late(self, query: Query) -> None:
        """A query that still waits will not be in time: it makes room, if others wait as well."""
        if query.due > self.now:
            room = self.max_batch * self.dispatch.idle_for(DEPLOYED)
            hopeless = query.id in self._waiting and len(self._waiting) > room
            if not hopeless or self._policy.may_answer(self, query):
                query.timer = self._start_timer(query.due, partial(self._expire, query))
                return
        self._expire(query)

    def _expire(self, query: Query) -> None:
        self.tell((query.id,), self._policy.on_loss_or_deadline, self, query)
        self._expire_unless_decoding(query)

    def _expire_unless_decoding(self, query: Query) -> None:
        if query.id not in self.queries:
            return
        if query.decoding:
            self._overdue.append(query)
        elif self.config.default_prediction:
            self.answer(query, Source.DEFAULT)
        else:
            waited = f"no answer within {self.now - query.arrived:.3f} s"
            self.fail(query, Reason.DEADLINE_EXCEEDED, waited)

    def _end_query(self, query: Query) -> None:
        del self.queries[query.id]
        if query.id in self._waiting:
            self._waiting.remove(query.id)
        else:
            self._admission.queries_ended += 1
        self.cancel_timer(query.timer, query.alarm)
        for task in query.tasks:
            self.drop(task)
        try:
            self._policy.resolved(self, query)
        except Exception as error:
            self._on_error(error, ())
        self.release(query.id)

    # Units

    def _start(self, instance: str, tasks: list[Task]) -> None:
        unit = self.begin(instance, tasks[0].role, tasks)
        unit.is_original = unit.role == DEPLOYED and not tasks[0].preemptible
        unit.is_comparison = tasks[0].comparing
        if unit.is_original:
            self._admission.spend(self.now, 1)
        policy = self._policy
        for task in tasks:
            task.unit, task.instance = unit, instance
            if task.comparing:
                continue
            if task.role != DEPLOYED:
                self.tell((), policy.redundancy_starts, self, task)
                continue
            self._waiting.discard(task.subject)
            try:
                policy.starts(self, task)
            except Exception as error:
                self._on_error(error, (task.subject,))
        self._health.started(unit)
        run = Run(instance, unit.id, unit.role, tuple(map(_SUBJECT, tasks)))
        self._actions += self._background.starts(unit, run) if unit.is_comparison else [run]

    def _runs_on(self, unit: Unit) -> bool:
        return self._background.takes(unit)

    def _end_unit(
        self,
        unit: Unit,
        ended_at: float,
        *,
        finished: bool = False,
        rest: float = 0.0,
        lost: bool = False,
    ) -> bool:
        """Take a unit off its instance, which then rests, or is `lost`. Return whether queries need
        it: it was no golden query and no comparison."""
        del self.units[unit.id]
        unit.took = ended_at - unit.started
        if not lost:
            self.unit_on[unit.instance] = None
            if not unit.tasks:
                self._health.not_verified(unit, rest=rest)
                return False
            self._health.ended(unit, finished=finished, rest=rest)
        for task in unit.tasks:
            task.unit = task.instance = None
        if unit.is_original:
            self._admission.ended(self.now, unit, finished=finished)
        if unit.is_comparison or not unit.tasks:
            return False
        try:
            self._policy.unit_ended(self, unit, finished=finished)
        except Exception as error:
            self._on_error(error, ())
        return True

    def _try_again(self, unit: Unit, detail: str, *, turned_away: bool) -> None:
        """Try the tasks of a failed unit again, unless that has been done as often as it may."""
        for task in reversed(unit.tasks):
            if not task.wanted:
                continue
            task.failed_on.append(unit.instance)
            task.turned_away += turned_away
            query = self.queries.get(task.subject) if task.role == DEPLOYED else None
            tries = len(task.failed_on)
            if tries - task.turned_away < self.config.max_attempts:
                # One that failed with different instances may fail whatever shares its batch.
                task.alone = task.alone or tries - task.turned_away > 1
                self.queue_again(task)
                if query is not None:
                    self.tell((query.id,), self._policy.on_loss_or_deadline, self, query)
                continue
            task.wanted = False
            if query is not None and not any(copy.wanted for copy in query.tasks):
                tried = f"tried {tries} times; the last time: {detail}"
                self.fail(query, Reason.INSTANCES_FAILED, tried)

    # The turn

    def _turn(self) -> list[Action]:
        """Finish the event: fire timers that are due, give idle instances tasks. Return all actions
        that answer it, with the wake-up for the next timer."""
        while True:
            if self._timers and self._timers[0][0] <= self.now:
                self._fire_timers()
            while self._broken:
                query_id, detail = self._broken.pop()
                self._fail_all([query_id], Reason.INTERNAL, detail)
            if self._poison.set_aside:
                self._poison.retry()
            # What is decoded needs no instance, if it can be right: that is reported at once.
            if self._deciding or not any(self.dispatch.depths.values()):
                break
            idle = True
            for instance, tasks in self.dispatch.assign(self.max_batch):
                idle = False
                self._start(instance, tasks)
            if idle:
                break
        if self._background.task is not None:
            self._background.give_up()
        if self._forgotten:
            self._actions.append(ForgetQueries(tuple(self._forgotten)))
            self._forgotten.clear()
        # A wake-up that comes too early does no harm and asks again, so that most events, which
        # only remove the earliest timer, need not replace the driver's.
        if self._wake_at is not None and self._wake_at <= self.now:
            self._wake_at = None
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if self._timers and (self._wake_at is None or self._timers[0][0] < self._wake_at):
            self._wake_at = self._timers[0][0]
            self._actions.append(WakeAt(self._wake_at))
        self._deciding = False
        actions, self._actions = self._actions, []
        return actions

    def _fire_timers(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._timers_live -= 1
                callback()
