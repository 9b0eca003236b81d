"""The scheduler: everything that decides what runs where and when a query is answered.

Theory of operation. A driver (the asyncio frontend, the simulator, a test) reports events by
calling the methods of `Scheduler`, and carries out the actions that they return, in order. Nothing
here waits, sleeps or reads a clock: the same events give the same actions.

- A *query* is pending from `queries_arrived` until it is answered or failed, once. Its deadline is
  a timer: it ends then at the latest.
- A *task* is one row of work for one model: the query itself for the deployed model, a parity
  query for a parity model. It is queued, then running as part of a unit, then over.
- A *unit* is the batch of tasks that one instance runs. An instance runs one unit at a time.
  The tasks of a failed unit, or of an instance that left, go back to the head of the queue.
- A *node* is a machine; its instances fail together. A query and its copies, and the units of a
  coding group, run on different nodes, as far as there are instances on enough of them.
- The *policy* (policies/) decides which redundant tasks are sent, and when a stand-in answers.
  It acts through the port (port.py), which is this scheduler's state and verbs.
- *Holds* on a query's tensors count their users: the query itself while pending, its coding group,
  and the padding kept for later groups. When the last is released, the driver forgets the tensors.

The states of a query:

    waiting    no task of it runs. `Admission` has taken it; the dispatch rule (dispatch.py) gives
               its original to an instance. If it can no longer be in time while others wait, it
               ends as if at its deadline, to make room.
    running    a task of it runs. If that fails or its instance is lost, it waits again, up to
               max_attempts times, or is tried alone as a suspect (poison.py).
    decoding   it is being reconstructed, until the driver reports `decoded`.
    over       answered by the model or a stand-in, or failed. At its deadline it is answered by
               any stand-in that the policy has for it, or fails.

A turn: the event takes effect, then timers that are due fire, then idle instances get tasks; the
last two alternate until nothing more happens. Health (health.py) sees every unit and decides which
instances the dispatch rule has.
"""

import heapq
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from math import inf
from operator import attrgetter
from random import Random

from parity_models.roles import BACKUP, DEPLOYED, Source, parity_role, source_of
from parity_models.scheduling.actions import (
    Action,
    Answer,
    Audit,
    Compare,
    Encode,
    Fail,
    ForgetGroup,
    ForgetQueries,
    Reason,
    Run,
    WakeAt,
)
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.effect import Redundancy
from parity_models.scheduling.health import Health, State
from parity_models.scheduling.poison import Poison
from parity_models.scheduling.policies.policy import Policy, StandIns, rows_needed
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RecentDurations
from parity_models.scheduling.work import Query, SchedulerConfig, Task, Unit

_SUBJECT = attrgetter("subject")

MAX_AUDITED = 64
"""The most answers of stand-ins that wait at a time to be compared with the model's."""

NO_DOUBTS: Mapping[int, float] = {}


class Scheduler(Port):
    """Events in, actions out; see the theory of operation above. Times in seconds.

    The contract with the driver: it reports what happened to one instance in order, but an event
    may be reported late (after timers that came due after it), twice, or for a unit or an instance
    that is gone. An event takes effect before timers that have become due in the meantime: an
    output that has arrived answers its query, however late it is. An event that says nothing new is
    ignored. A `Cancel` or `Compare` may come for a unit that has ended but is not reported yet; the
    driver ignores it. If a hook of the policy raises, the queries concerned fail as INTERNAL, and
    the others go on.

    Args:
        policy: The redundancy policy, which serves this scheduler alone.
        config: Bounds; by default those of SchedulerConfig.
        dispatch: The dispatch rule; by default the policy's.

    """

    def __init__(
        self,
        policy: Policy,
        config: SchedulerConfig | None = None,
        dispatch: Dispatch | None = None,
    ) -> None:
        config = config or SchedulerConfig()
        super().__init__(config, Dispatch(policy.rule) if dispatch is None else dispatch)
        self._policy = policy
        self._admission = Admission(config, self.dispatch)
        self._health = Health(self)
        self._poison = Poison(self, policy)
        self._background = BackgroundComparison(self, policy.asks)
        self._random = Random(config.seed)
        self._audited: set[Task] = set()
        """The tasks of the model that run on, or wait, only to be compared."""
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
        admitted: bool = False,
    ) -> list[Action]:
        """Queries of one kind arrived together; all or none are admitted.

        Args:
            now: The time in seconds, as in all events.
            queries: Their ids.
            kind: Their shape and dtype: batches and coding groups are of one kind.
            deadline: The time at which they fail if unanswered; by default the config's.
            tenant: They share coding groups only with queries of the same tenant.
            exact: The ids of queries that only the deployed model may answer.
            admitted: True if `refusal` returned None for their request.

        Raises:
            ValueError: An id is in use.

        """
        for query_id in queries:
            if query_id in self._holds:
                raise ValueError(f"query {query_id} is here already; ids must be unique")
        self.now = max(self.now, now)
        if self._timers and self._timers[0][0] <= self.now:
            self._fire_timers()  # expired queries do not wait
        due = now + self.config.deadline if deadline is None else deadline
        lag = self.process_load.lag
        refusal = admitted or self._admission.refusal(
            self.now, due, len(queries), waiting=len(self._waiting), lag=lag
        )
        if isinstance(refusal, tuple):
            for query_id in queries:
                self._actions.append(Fail(query_id, *refusal))
                self._forgotten.append(query_id)
            return self._turn()
        # A query that is too late to start makes room for others.
        too_late = due - self._admission.typical_run
        coded = tenant is not None or self.config.share_groups
        for query_id in queries:
            original = Task(DEPLOYED, query_id, kind)
            query = Query(query_id, kind, now, due, original, [original], tenant, query_id in exact)
            original.apart.append(query.tasks)
            query.coded = coded and not query.exact
            query.timer = self.set_timer(too_late, partial(self._too_late, query), (query_id,))
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
        """The client has given up these queries; the pending ones end."""
        self.now = max(self.now, now)
        self._fail_all(queries, Reason.ABANDONED, "its client has given up")
        return self._turn()

    def queries_failed(self, now: float, queries: Iterable[int], detail: str) -> list[Action]:
        """The driver could not carry out an action for these queries; the pending ones fail."""
        self.now = max(self.now, now)
        self._fail_all(queries, Reason.INTERNAL, detail)
        return self._turn()

    def unit_finished(
        self,
        now: float,
        unit: int,
        unusable: Collection[int] = (),
        *,
        doubts: Mapping[int, float] = NO_DOUBTS,
        ended_at: float | None = None,
    ) -> list[Action]:
        """An instance has run a unit; the driver holds its outputs.

        Args:
            now: The time in seconds.
            unit: The id of the unit.
            unusable: The subjects with an impossible or rejected output. If a stand-in gave it, it
                answers no query; if the deployed model did, it answers only its own query.
            doubts: The probability for each subject that the backup's output differs from the
                model's prediction; 0 by default.
            ended_at: The time at which the instance was done, by this clock, if it reports that;
                the report has waited since then.

        """
        self.now = now = max(self.now, now)
        known = self.units.get(unit)
        if known is not None and ended_at is not None and known.started <= ended_at <= now:
            self.process_load.waited(now - ended_at, self._admission.typical_run)
        else:
            ended_at = now
        if known is None or not self._end_unit(known, ended_at, finished=True):
            return self._turn()
        for task in known.tasks:
            usable = task.subject not in unusable
            if task.role != DEPLOYED:
                if usable:
                    task.doubt = doubts.get(task.subject, 0.0)
                    self.tell((), self._policy.redundancy_finished, self, task)
                elif task.role == BACKUP:
                    self._reject(task.subject, Source.BACKUP)
            elif task.audited:
                if usable:
                    self._actions.append(Audit(task.subject))
                self._end_audit(task)
            else:
                self._predicted(task, usable=usable)
        return self._turn()

    def unit_failed(self, now: float, unit: int, detail: str, *, busy: float = 0.0) -> list[Action]:
        """A unit failed on an instance that is still up (or was cancelled).

        `busy`: seconds for which the instance gets no units, because it refused this one. A
        refusal does not count as a failure.
        """
        self.now = max(self.now, now)
        known = self.units.get(unit)
        if known is not None and self._end_unit(known, self.now, rest=busy):
            self._try_again(known, detail, turned_away=busy > 0)
        return self._turn()

    def decoded(
        self,
        now: float,
        group: int,
        wrong: Collection[int] = (),
        doubts: Mapping[int, float] = NO_DOUBTS,
    ) -> list[Action]:
        """The oldest Decode of the group has been carried out.

        The reconstructions of the slots `wrong` are rejected, as impossible or as too unlikely to
        be right; `doubts` are the probabilities that the others differ from the model's
        predictions, by slot. The driver reports this for every Decode, as soon as it has carried
        out the actions returned with it.
        """
        self.now = max(self.now, now)
        if decodes := self._decodes.pop(group, []):
            decode = decodes.pop(0)
            if decodes:
                self._decodes[group] = decodes
            for slot in decode.slots:
                query = self.queries.get(decode.members[slot])
                if query is not None and slot not in wrong:
                    doubt = doubts.get(slot, 0.0)
                    self.tell((query.id,), self._policy.reconstructed, self, query, doubt)
                    query.decoding = False
                elif query is not None:
                    query.decoding = False
                    self._reject(query.id, Source.RECONSTRUCTION)
        overdue, self._overdue = self._overdue, []
        for query in overdue:
            self._expire(query, decoded=True)
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
        if instance in self.unit_on:
            unit = self.unit_on.pop(instance)
            for task in unit.tasks if unit is not None else ():
                task.unit = task.instance = None
            self._health.left(instance)
            if unit is not None and self._end_unit(unit, self.now, lost=True):
                self._poison.lost(unit)
        return self._turn()

    def unit_verified(self, now: float, unit: int, right: bool, answer: int = 0) -> list[Action]:
        """An instance has answered the golden query of a Verify, rightly or not.

        For a client's query, `answer` numbers its different answers in the order of arrival; 0 is
        the one that the client got.
        """
        self.now = max(self.now, now)
        known = self.units.get(unit)
        if known is not None and not known.tasks:
            del self.units[unit]
            self.unit_on[known.instance] = None
            known.took = self.now - known.started
            self._health.verified(known, right=right, answer=answer)
        return self._turn()

    def gate_turned(self, now: float, source: Source, is_open: bool) -> list[Action]:
        """The gate of this source has opened or closed; all are open at first.

        While it is closed, the driver reports this source's outputs as `unusable` or `wrong`.
        """
        self.now = max(self.now, now)
        (self.closed_gates.discard if is_open else self.closed_gates.add)(source)
        return self._turn()

    def process_measured(self, now: float, lag: float, busy: float) -> list[Action]:
        """One of the driver's timers was `lag` seconds late. `busy` is the share of the time since
        the last report that its thread spent computing or waiting for a processor."""
        self.now = max(self.now, now)
        self.process_load.busy = busy
        self.process_load.waited(lag, self._admission.typical_run)
        return self._turn()

    def redundancy_switched(self, now: float, on: bool) -> list[Action]:
        """Redundant work is sent from now on, or not; at first it is."""
        self.now = max(self.now, now)
        self.redundancy_on = on
        return self._turn()

    def budget_changed(self, now: float, differ: float) -> list[Action]:
        """Another share of all answers may differ from the model's from now on."""
        self.now = max(self.now, now)
        self._policy.change_budget(differ)
        return self._turn()

    def time_passed(self, now: float) -> list[Action]:
        """It is `now`; the driver calls this at the time of the last WakeAt."""
        self.now = max(self.now, now)
        return self._turn()

    # Questions of the driver

    def refusal(self, now: float, queries: int, due: float, held: int = 0) -> "Refusal | None":
        """Return the reason why this many queries, due at one time, would be refused; None if they
        would be admitted. The driver still holds back `held` queries that were admitted."""
        waiting, lag = len(self._waiting) + held, self.process_load.lag
        return self._admission.refusal(max(self.now, now), due, queries, waiting=waiting, lag=lag)

    @property
    def waiting(self) -> int:
        """The number of queries that wait for an instance."""
        return len(self._waiting)

    @property
    def pending(self) -> int:
        """The number of queries that are neither answered nor failed."""
        return len(self.queries)

    @property
    def redundancy(self) -> Redundancy:
        """The state of redundant work: sent now, or the reason why not."""
        return self._policy.redundancy(self) if self.redundancy_on else Redundancy.OFF

    def running(self) -> dict[str, int | None]:
        """Return the instances that are up, as far as reported, and the unit that each one runs."""
        return {name: unit.id if unit else None for name, unit in self.unit_on.items()}

    def instances(self) -> list[tuple[str, State]]:
        """Return every instance that has joined and not left, with its state."""
        return self._health.states()

    def size(self) -> int:
        """Return the number of objects that are remembered; few if no query is pending."""
        known = (self.queries, self._waiting, self.units, self._decodes, self._holds)
        others = (self._overdue, self._poison.set_aside)
        tasks = sum(self.dispatch.depths.values()) + (self._background.task is not None)
        timers = len(self._callbacks) - (self._health.watch > 0)
        return sum(map(len, (*known, *others))) + tasks + timers

    # Queries

    def _predicted(self, task: Task, *, usable: bool) -> None:
        """The deployed model's prediction has arrived. It answers the query if that still waits;
        others use it if it is `usable`."""
        if usable:
            try:
                self._policy.on_prediction(self, task)
            except Exception as error:
                self._on_error(error, (task.subject,))
        query = self.queries.get(task.subject)
        if query is not None:
            if self.now >= self._background.due:
                self._background.answered(query)
            self._actions.append(Answer(query.id, Source.MODEL))
            self._end_query(query)

    def _fail_all(self, queries: Iterable[int], reason: Reason, detail: str) -> None:
        """Fail the pending ones of these queries."""
        for query_id in queries:
            query = self.queries.get(query_id)
            if query is not None:
                self.fail(query, reason, detail)

    def _reject(self, query_id: int, source: Source) -> None:
        """A stand-in's output was rejected. The query now needs the model."""
        query = self.queries.get(query_id)
        if query is not None and not query.exact:
            query.exact = True
            self.tell((query_id,), self._policy.refused, self, query, source)
            if query.withheld and query.first is not None and source is Source.BACKUP:
                self.queue_again(query.original)

    def _replaced_by(self, task: Task) -> Query | None:
        """Return the query whose original this task of a stand-in replaces, if any."""
        query = self.queries.get(task.subject) if task.role == BACKUP else None
        return query if query is not None and query.first is task else None

    def _too_late(self, query: Query) -> None:
        """End a waiting query that cannot be in time any more, if others wait as well."""
        if query.due > self.now:
            room = self.max_batch * self.dispatch.idle_for(DEPLOYED)
            hopeless = query.id in self._waiting and len(self._waiting) > room
            if not hopeless or self._policy.may_answer(self, query):
                query.timer = self.set_timer(query.due, partial(self._expire, query), (query.id,))
                return
        self._expire(query)

    def _expire(self, query: Query, *, decoded: bool = False) -> None:
        """End a query at its deadline, or after its decoding if that is in progress."""
        if not decoded:
            self.tell((query.id,), self._policy.on_loss_or_deadline, self, query)
        if query.id not in self.queries:
            return
        if query.decoding:
            self._overdue.append(query)
        else:
            waited = f"no answer within {self.now - query.arrived:.3f} s"
            self.fail(query, Reason.DEADLINE_EXCEEDED, waited)

    def _end_query(self, query: Query) -> None:
        del self.queries[query.id]
        if query.id in self._waiting:
            self._waiting.remove(query.id)
        else:
            self._admission.queries_ended += 1
        callbacks = self._callbacks
        callbacks.pop(query.timer, None)
        callbacks.pop(query.alarm, None)
        for task in query.tasks:
            self.drop(task)
        if query.first is not None:
            self.drop(query.first)
        try:
            self._policy.resolved(self, query)
        except Exception as error:
            self._on_error(error, ())
        self.release(query.id)

    # Units

    def _start(self, instance: str, tasks: list[Task]) -> None:
        self._last_unit += 1
        first = tasks[0]
        unit = Unit(self._last_unit, instance, first.role, tasks, self.now, first.kind)
        self.units[unit.id] = self.unit_on[instance] = unit
        unit.is_original = unit.role == DEPLOYED and not first.preemptible
        unit.is_comparison = first.comparing
        policy = self._policy
        for task in tasks:
            task.unit, task.instance = unit, instance
            if task.comparing or task.audited:
                continue
            if task.role != DEPLOYED:
                if self._replaced_by(task) is not None:
                    unit.is_original = True
                    self._waiting.discard(task.subject)
                self.tell((), policy.redundancy_starts, self, task)
                continue
            self._waiting.discard(task.subject)
            try:
                policy.starts(self, task)
            except Exception as error:
                self._on_error(error, (task.subject,))
        if unit.is_original:
            self._admission.spend(self.now, 1)
        self._health.started(unit)
        run = Run(instance, unit.id, unit.role, tuple(map(_SUBJECT, tasks)))
        self._actions += self._background.starts(unit, run) if unit.is_comparison else [run]

    def _runs_on(self, unit: Unit) -> bool:
        return self._background.takes(unit)

    def _audit(self, query: Query) -> None:
        original = query.original
        drawn = self._random.random() * self.config.compare_one_in < 1
        if not drawn or query.crashes or not original.wanted or len(self._audited) >= MAX_AUDITED:
            return
        original.audited = True
        self._audited.add(original)
        self.hold(query.id)
        query.tasks.remove(original)
        if original.unit is None:  # it needs not, and may not, delay others
            self.dispatch.remove(original)
            original.preemptible = True
            self.dispatch.add(original)
            self.set_timer(query.due, partial(self._give_up_audit, original))

    def _give_up_audit(self, task: Task) -> None:
        if task.queue is not None:
            self.dispatch.remove(task)
            self._end_audit(task)

    def _end_audit(self, task: Task) -> None:
        task.wanted = False
        self._audited.discard(task)
        self.release(task.subject)

    def _end_unit(
        self,
        unit: Unit,
        ended_at: float,
        *,
        finished: bool = False,
        rest: float = 0.0,
        lost: bool = False,
    ) -> bool:
        """Take a unit off its instance, which then rests, or is `lost`. Return False for a golden
        query or a comparison, which no query needs."""
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
            if task.audited and not finished:
                self._end_audit(task)
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
        """Try the tasks of a failed unit again, up to `max_attempts` times."""
        for task in reversed(unit.tasks):
            if not task.wanted:
                continue
            if (asking := self._replaced_by(task)) is not None:
                self.drop(task)
                if asking.withheld:
                    self.queue_again(asking.original)
                continue
            task.failed_on.append(unit.instance)
            task.turned_away += turned_away
            query = self.queries.get(task.subject) if task.role == DEPLOYED else None
            tries = len(task.failed_on)
            if tries - task.turned_away < self.config.max_attempts:
                # A task that failed on several instances may fail the others in its batch.
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
            # `decoded` is reported at once, and says which queries still need an instance.
            if self._deciding or not any(self.dispatch.depths.values()):
                break
            last = self._last_unit
            for instance, tasks in self.dispatch.assign(self.max_batch):
                self._start(instance, tasks)
            if self._last_unit == last:
                break
        if self._background.task is not None:
            self._background.give_up()
        if self._forgotten:
            self._actions.append(ForgetQueries(tuple(self._forgotten)))
            self._forgotten.clear()
        # A wake-up that comes too early is harmless and sets the next one. So most events, which
        # only remove the earliest timer, need not replace the driver's.
        if self._wake_at is not None and self._wake_at <= self.now:
            self._wake_at = None
        if self._timers and (self._wake_at is None or self._timers[0][0] < self._wake_at):
            self._wake_for_next()
        self._deciding = False
        actions, self._actions = self._actions, []
        return actions

    def _wake_for_next(self) -> None:
        while self._timers and self._timers[0][1] not in self._callbacks:
            heapq.heappop(self._timers)
        if self._timers and (self._wake_at is None or self._timers[0][0] < self._wake_at):
            self._wake_at = self._timers[0][0]
            self._actions.append(WakeAt(self._wake_at))

    def _fire_timers(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            callback, about = self._callbacks.pop(heapq.heappop(self._timers)[1], (None, ()))
            if callback is not None:
                self.tell(about, callback)


Refusal = tuple[Reason, str, float]
"""A refusal of queries: the reason, a detail, and the seconds until a retry, jittered so that
clients do not all come at once."""


class Admission:
    """Estimates how long queries wait and run, and refuses any that cannot be in time.

    A server that admits more queries than it can serve answers none in time. So a query is refused
    at once if the queries that wait before it leave it no time to run. The wait follows from the
    measured rate of the instances: the queries that ended, for each second that instances spent on
    the deployed model. Copies, failed and cancelled units, and units that still run count as time
    spent; preemptible units do not.

    A queue may absorb a burst; one that never empties only makes everybody late. While the queue
    has not been empty for a second, a query is taken only if its wait is short: the controlled
    delay of Maurer (Fail at Scale, ACM Queue 13(8), 2015), after Nichols and Jacobson (Controlling
    Queue Delay, ACM Queue 10(5), 2012).

    If nothing waits and there are idle instances for all queries of a request, they are always
    taken, and an idle server forgets its estimates. So no estimate, however wrong, locks the server
    up. Times in seconds.
    """

    STANDING, STANDING_RUNS = 1.0, 20
    """A queue is *standing* if it has not been empty for this many seconds and median run times."""

    SHORT, SHORT_RUNS, LEAST_RUNS, SHORT_SHARE = 0.5, 20, 3, 0.05
    """The longest wait allowed in a standing queue: SHORT seconds or SHORT_RUNS median run times,
    whichever is less, but at least LEAST_RUNS median run times and SHORT_SHARE of the time left."""

    SLACK = 1.2
    """The factor by which waits are overestimated, as they vary."""

    LONG_RUN = 0.9
    """The quantile of run times that a query is expected not to exceed."""

    KNOWN = 5
    """The units that must have ended before anything is estimated from them."""

    FORGOTTEN = 10.0
    """Seconds after which an idle server forgets its estimates."""

    NO_INSTANCES_RETRY, LEAST_RETRY = 1.0, 0.1
    """Seconds until a retry while no instance is up, and the minimum otherwise."""

    def __init__(self, config: SchedulerConfig, dispatch: Dispatch) -> None:
        self._config = config
        self._dispatch = dispatch
        self._random = Random(config.seed)
        self._runs = RecentDurations(window=100, every=self.KNOWN)
        self.typical_run = 0.0
        """The median run time; 0 while it is unknown."""
        self.queries_ended = 0.0
        """The queries that did not wait and were answered or failed; old ones count less."""
        self._units = 0
        self._running = 0
        self._spent = 0.0
        self._spent_until = 0.0
        self._empty_at = 0.0
        self._last_end = 0.0

    def spend(self, now: float, started: int = 0) -> None:
        """Count the time that instances have spent; `started` more of them run from now on."""
        self._spent += self._running * (now - self._spent_until)
        self._spent_until = now
        self._running += started

    def ended(self, now: float, unit: Unit, *, finished: bool) -> None:
        self._spent += self._running * (now - self._spent_until)
        self._spent_until = self._last_end = now
        self._running -= 1
        self._units += 1
        # About the last four units of each instance count, and at least 100 in all.
        newest = 1 / max(100, 4 * len(self._dispatch.up[DEPLOYED]))
        self._spent -= newest * self._spent
        self.queries_ended -= newest * self.queries_ended
        if finished and self._runs.add(unit.took):
            self.typical_run = self._runs.quantile(0.5) or 0.0

    def refusal(
        self, now: float, due: float, queries: int, *, waiting: int, lag: float
    ) -> Refusal | None:
        """Return the reason for refusing these queries, which are due at one time, or None.

        `waiting` queries wait for instances; everything also waits `lag` seconds for the server's
        own process.
        """
        max_queue = self._config.max_queue
        if not waiting:
            self._empty_at = now
            room = self._dispatch.idle_for(DEPLOYED) * self._config.max_batch
            if queries <= min(room, max_queue):
                return None
        instances = len(self._dispatch.up[DEPLOYED])
        if not instances:
            detail = "no instance of the model is up; try again later"
            return Reason.NO_INSTANCES, detail, self._jittered(self.NO_INSTANCES_RETRY)
        rate = self.capacity(now)
        if waiting + queries > max_queue:
            detail = f"{waiting} queries wait, and at most {max_queue} may (max_queue)"
            return self._overloaded(detail, waiting / rate if rate else 0.0)
        if not rate:
            return None
        left = due - now
        run, long_run = self.typical_run, self._runs.quantile(self.LONG_RUN) or 0.0
        wait = waiting / rate
        # The last of these queries starts after all before it, once a running unit has ended.
        takes = lag + self.SLACK * ((waiting + queries - 1) / rate + run / instances) + long_run
        short = max(
            min(self.SHORT, self.SHORT_RUNS * run), self.LEAST_RUNS * run, self.SHORT_SHARE * left
        )
        standing = now - self._empty_at
        if takes > left:
            beyond = takes - left
            until = f"an answer takes {takes:.3f} s, and is due in {left:.3f} s"
        elif standing > max(self.STANDING, self.STANDING_RUNS * run) and wait > short:
            beyond = wait - short
            until = f"queries have waited for {standing:.1f} s without a break, now {wait:.3f} s"
        else:
            return None
        if queries > 1:
            until = f"{queries} queries at once are many: {until}"
        there = f"{waiting} wait for {instances} instances, which answer {rate:.1f} a second"
        return self._overloaded(f"{until}: {there}", beyond)

    def capacity(self, now: float) -> float:
        """Return how many queries a second the instances answer while all are busy; 0: unknown."""
        self.spend(now)
        if self._units < self.KNOWN or not self._spent or not self.queries_ended:
            return 0.0
        if not self._running and now - self._last_end > self.FORGOTTEN:
            return 0.0
        return len(self._dispatch.up[DEPLOYED]) * self.queries_ended / self._spent

    def _overloaded(self, detail: str, seconds: float) -> Refusal:
        detail = f"{detail}; try again later"
        return Reason.OVERLOADED, detail, self._jittered(max(self.LEAST_RETRY, seconds))

    def _jittered(self, seconds: float) -> float:
        return seconds * self._random.uniform(1, 2)


class BackgroundComparison:
    """Compares stand-ins with the model in the background, so their accuracy is always known.

    Most queries are answered before the output of their stand-in arrives, and its unit is
    cancelled. One in `compare_one_in` of these units may finish, and its outputs are compared with
    the model's predictions. While the gate of their source is closed, every such unit is compared,
    one at a time, to reopen it soon.

    While no query is late, no stand-in is asked. So at most once in `compare_every` seconds, a
    query that the deployed model has just answered runs on a stand-in as well, only to be compared.
    The stand-ins take turns; any without an instance that is up is skipped. A parity model needs
    a whole group of answered queries, of one kind and tenant.

    It costs little: one unit at a time is compared. An answered query runs only if an instance is
    idle at once and no query waits; it is never tried again, and nothing is kept of it once it
    runs. Times in seconds.
    """

    def __init__(self, port: Port, stand_ins: StandIns) -> None:
        self._port = port
        self._every = port.config.compare_every
        self._not_needed = 0
        self._compared: int | None = None
        """The unit that is compared, or was last."""
        self._group_sizes = {BACKUP: 1} if stand_ins.backup else {}
        """The number of queries in a task of each role, in the order of their turns."""
        code = stand_ins.code
        if code is not None and rows_needed(code)[:1] == [1]:
            self._group_sizes[parity_role(0)] = code.k
        self.due = 0.0 if self._every > 0 and self._group_sizes else inf
        """The time of the next comparison of an answered query."""
        self._is_first = True
        self._members: list[int] = []
        """Answered queries that wait for as many others as are in a group."""
        self._sharers: tuple[Hashable, Hashable] = (None, None)
        self._waiting_since = 0.0
        self.task: Task | None = None
        """The queued task of a comparison, if any."""
        self._ids = count(-1, -1)  # policies' groups have ids above 0

    def takes(self, unit: Unit) -> bool:
        """Return whether a unit that is no longer needed may finish, for a comparison.

        If so, a queued comparison of an answered query is given up for it.
        """
        if unit.role == DEPLOYED:
            return False
        self._not_needed += 1
        port = self._port
        is_due = self._not_needed % port.config.compare_one_in == 0
        if port.closed_gates and source_of(unit.role) in port.closed_gates:
            is_due = True
        if self._compared in port.units or not is_due:
            return False
        self._compared = unit.id
        self.give_up()
        return True

    def answered(self, query: Query) -> None:
        """The deployed model's prediction for this query has arrived, and a comparison is due."""
        port, now = self._port, self._port.now
        if self._is_first:
            self._is_first, self.due = False, now + self._every
            return
        busy = self.task is not None or self._compared in port.units
        if busy or query.exact or query.crashes:
            return
        role = next(iter(self._group_sizes))
        shares = role == BACKUP or query.tenant is not None or port.config.share_groups
        if not (shares and port.up(role)):
            self._next_stand_in()
        elif port.dispatch.idle_for(role) and not port.queued(DEPLOYED):
            self._add_member(query)
            if len(self._members) == self._group_sizes[role]:
                subject = query.id if role == BACKUP else next(self._ids)
                self.task = Task(
                    role, subject, query.kind, preemptible=True, alone=True, comparing=True
                )
                port.dispatch.add(self.task)

    def starts(self, unit: Unit, run: Run) -> list[Action]:
        """The queued task is about to run as `run`. Return the actions to carry out, in order.

        The predictions are taken at `Compare`, so that nothing is kept from then on.
        """
        (task,) = unit.tasks
        task.wanted = False  # it is not tried again
        self._compared = unit.id
        actions: list[Action] = [run, Compare(unit.instance, unit.id)]
        if task.role != BACKUP:
            encode = Encode(task.subject, tuple(self._members), 0.0)
            actions = [encode, *actions, ForgetGroup(task.subject)]
        self.task = None
        self.due = self._port.now + self._every
        self._next_stand_in()
        return actions

    def give_up(self) -> None:
        """Give up the queued task of a comparison, which did not start at once."""
        if self.task is not None:
            self._port.dispatch.remove(self.task)
            self.task.wanted = False
            self.task = None
            self._release()

    def _add_member(self, query: Query) -> None:
        sharers = (query.kind, query.tenant)
        if self._members and sharers != self._sharers:
            if self._port.now < self._waiting_since + self._every:
                return  # more of the kept kind and tenant may come
            self._release()
        if not self._members:
            self._sharers, self._waiting_since = sharers, self._port.now
        self._port.hold(query.id)
        self._members.append(query.id)

    def _release(self) -> None:
        for query in self._members:
            self._port.release(query)
        self._members.clear()

    def _next_stand_in(self) -> None:
        """Let the next stand-in take its turn."""
        self._release()
        role = next(iter(self._group_sizes))
        self._group_sizes[role] = self._group_sizes.pop(role)
