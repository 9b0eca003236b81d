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
  It acts through the port (port.py): the questions and verbs that it may use.
- *Holds* on a query's tensors count their users: the query itself while pending, its coding group,
  and the padding kept for later groups. When the last is released, the driver forgets the tensors.

states.py has the states of a query, and what changes them.

A turn: the event takes effect, then timers that are due fire, then idle instances get tasks; the
last two alternate until nothing more happens. Health (health.py) sees every unit and decides which
instances the dispatch rule has.
"""

import heapq
import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence, Sized
from functools import partial
from math import inf
from operator import attrgetter
from typing import Any

from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.actions import (
    Action,
    Answer,
    Cancel,
    Compare,
    Decode,
    Fail,
    ForgetQueries,
    Reason,
    Run,
    Verify,
    WakeAt,
)
from parity_models.scheduling.admission import Admission, Refusal
from parity_models.scheduling.comparison import Audits, BackgroundComparison
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.effect import Redundancy
from parity_models.scheduling.health import Health, State
from parity_models.scheduling.poison import Poison
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.process_load import ProcessLoad
from parity_models.scheduling.states import (
    ASKED_FIRST,
    ENDED,
    QUEUED,
    STARTED,
    TRANSITIONS,
    UNSTARTED,
    WITHHELD,
    QueryEvent,
)
from parity_models.scheduling.work import MIN_DELAY, Query, SchedulerConfig, Task, Unit

_log = logging.getLogger(__name__)

_SUBJECT = attrgetter("subject")

STUCK, STUCK_RUNS = 1.0, 20
"""Instances that have finished nothing for this many seconds and median run times are stuck."""

MANY_STUCK = 3
"""The fewest queries that must be stuck, if there are as many instances: one may be slow itself."""

NO_DOUBTS: Mapping[int, float] = {}


class Scheduler:
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
        is_unlike: Tells whether a query's inputs are unlike those that stand-ins learned from. It
            is asked at most once for each query, before a stand-in is to see it.

    """

    def __init__(
        self,
        policy: Policy,
        config: SchedulerConfig | None = None,
        dispatch: Dispatch | None = None,
        is_unlike: Callable[[int], bool] = lambda query: False,
    ) -> None:
        self.config = config = config or SchedulerConfig()
        self.dispatch = dispatch = Dispatch(policy.rule) if dispatch is None else dispatch
        self.is_unlike = is_unlike
        self.now = 0.0
        self.pace = dispatch.pace
        self.idle_for = dispatch.idle_for
        self.shares_node = dispatch.shares_node
        self.max_batch = config.max_batch
        self.queries: dict[int, Query] = {}
        self.waiting = 0
        """The number of queries that wait for an instance."""
        self.units: dict[int, Unit] = {}
        self.unit_on: dict[str, Unit | None] = {}
        """The unit that each instance runs; None: it has none."""
        self._tried: dict[str, float] = {}
        """When each instance got its first original since any finished a unit of the model."""
        self.process_load = ProcessLoad()
        self.closed_gates: set[Source] = set()
        self.redundancy_on = True
        self._actions: list[Action] = []
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
        self._wake_at = inf
        self._last_unit = 0
        self._policy = policy
        self._admission = Admission(config, dispatch)
        self._health = Health(self)
        self._poison = Poison(self, policy)
        self._background = BackgroundComparison(self, policy.asks)
        self._audits = Audits(self)

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
        more: bool = False,
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
            more: Others may arrive in this turn of the driver's loop. Units start at its end, when
                the driver reports `time_passed`, and so share batches.

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
        may_be_out = bool(self._tried) or not self.dispatch.up[DEPLOYED]
        degraded = may_be_out and self.degraded
        refusal = admitted or self._admission.refusal(
            self.now, due, len(queries), waiting=self.waiting, lag=lag, degraded=degraded
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
            self.waiting += 1
            self._holds[query_id] = 1
            if degraded and self.dispatch.up[DEPLOYED]:  # all of these are stuck
                self._strand(query)
                continue
            self.dispatch.add(original)
            if degraded:
                self._strand(query)
                continue
            try:
                self._policy.arrived(self, query)
            except Exception as error:
                self._on_error(error, (query_id,))
        if not more:
            return self._turn()
        actions, self._actions = self._actions, []
        return actions

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
                task.has_output = True
                if usable:
                    task.doubt = doubts.get(task.subject, 0.0)
                    self.tell((), self._policy.redundancy_finished, self, task)
                elif task.role == BACKUP:
                    self._reject(task.subject, Source.BACKUP)
            elif task.audited:
                self._audits.finished(task, usable=usable)
            else:
                self._predicted(task, usable=usable)
            if task.role == BACKUP:
                self._check_stranded(task.subject)
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
            for task in known.tasks:
                self._check_stranded(task.subject)
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
            for query in map(self.queries.get, decode.members):
                if query is not None and query.timer not in self._callbacks:
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
            self._health.left(instance)
            if unit is not None and self._end_unit(unit, self.now, lost=True):
                self._poison.lost(unit)
            self._strand_pending()
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
        self._audits.begin()
        return self._turn()

    def process_measured(self, now: float, lag: float, busy: float) -> list[Action]:
        """One of the driver's timers was `lag` seconds late. `busy` is the share of the time since
        the last report that its thread computed, and did not wait for a processor."""
        self.now = max(self.now, now)
        self.process_load.measured(busy)
        self.process_load.waited(lag, self._admission.typical_run)
        self._strand_pending()
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

    def refusal(self, now: float, queries: int, due: float, held: int = 0) -> Refusal | None:
        """Return the reason why this many queries, due at one time, would be refused; None if they
        would be admitted. The driver still holds back `held` queries that were admitted."""
        waiting, lag = self.waiting + held, self.process_load.lag
        return self._admission.refusal(
            max(self.now, now), due, queries, waiting=waiting, lag=lag, degraded=self.degraded
        )

    @property
    def degraded(self) -> bool:
        """True while no instance of the deployed model is up, or all are stuck, and stand-ins
        answer."""
        return self._is_out() and self._policy.stands_in(self)

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
        known: list[Sized] = [self.queries, self.units, self._decodes, self._holds]
        tasks = sum(self.dispatch.depths.values()) + (self._background.task is not None)
        timers = len(self._callbacks) - (self._health.watch > 0)
        return sum(map(len, known)) + len(self._poison.set_aside) + tasks + timers

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
            self._background.answered(query)
            if query.backup is not None:
                self._audits.predicted(query, query.backup)
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
            if query.state in WITHHELD and source is Source.BACKUP:
                self.queue_again(query.original)

    def _is_out(self) -> bool:
        """Return whether no instance of the deployed model is up, or all are stuck: every node has
        queries, and has finished none for long. Instances that run stand-ins as well never are."""
        up = self.dispatch.up[DEPLOYED]
        if not up or not self._tried:
            return not up
        run = self._admission.typical_run
        before = self.now - max(STUCK, STUCK_RUNS * run)
        if not run or next(iter(self._tried.values())) > before:
            return False
        stuck = [instance for instance, at in self._tried.items() if at <= before]
        return (
            set(up).isdisjoint(self.dispatch.up[BACKUP])
            and len(stuck) >= min(MANY_STUCK, len(up))
            and self.dispatch.nodes_of(stuck) >= self.dispatch.nodes_of(up)
            and any(unit.role == DEPLOYED for unit in self.units.values())
        )

    def _strand_pending(self) -> None:
        """While stand-ins answer in place of the deployed model, ask them for all queries."""
        if self.queries and self.degraded:
            for query in [*self.queries.values()]:
                self._strand(query)

    def _strand(self, query: Query) -> None:
        query.stranded = True
        self._check_stranded(query.id)

    def _check_stranded(self, query_id: int) -> None:
        """While no instance of the deployed model answers, have a stand-in answer a query. One that
        no stand-in may answer waits if others will soon be in their place, or fails at once, unless
        an instance that is stuck runs it."""
        query = self.queries.get(query_id)
        if query is None or not query.stranded:
            return
        if self._is_out():
            self.tell((query_id,), self._policy.stranded, self, query)
            asked = query.backup
            if query_id not in self.queries or any(task.unit for task in query.tasks):
                return
            if asked is not None and asked.wanted and not asked.has_output:
                return
            if not self._admission.may_recover(self.now):
                self._actions.append(Fail(query_id, *self._admission.no_instances()))
                self._end_query(query)
                return
        original = query.original
        if original.wanted and original.queue is None and original.unit is None:
            self.dispatch.add(original)  # it was kept from instances that were stuck

    def _too_late(self, query: Query) -> None:
        """End a waiting query that cannot be in time any more, if others wait as well."""
        if query.due > self.now:
            room = self.max_batch * self.dispatch.idle_for(DEPLOYED)
            hopeless = query.state in UNSTARTED and self.waiting > room
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
        if not query.decoding:  # else `decoded` will end it
            waited = f"no answer within {self.now - query.arrived:.3f} s"
            self.fail(query, Reason.DEADLINE_EXCEEDED, waited)

    def _end_query(self, query: Query) -> None:
        del self.queries[query.id]
        if query.state in UNSTARTED:
            self.waiting -= 1
        else:
            self._admission.queries_ended += 1
        query.state = ENDED
        callbacks = self._callbacks
        callbacks.pop(query.timer, None)
        callbacks.pop(query.alarm, None)
        for task in query.tasks:
            self.drop(task)
        if query.backup is not None:
            self.drop(query.backup)
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
        policy = self._policy
        for task in tasks:
            task.unit, task.instance = unit, instance
            if task.comparing or task.audited:
                continue
            if task.role != DEPLOYED:
                if task.first:
                    unit.is_original = True
                    self.advance(self.queries[task.subject], STARTED)
                self.tell((), policy.redundancy_starts, self, task)
                continue
            query = self.queries[task.subject]
            self.advance(query, STARTED)
            if task is query.original:
                self._tried.setdefault(instance, self.now)
            try:
                policy.starts(self, task)
            except Exception as error:
                self._on_error(error, (task.subject,))
        if unit.is_original:
            self._admission.spend(self.now, 1)
        self._health.started(unit)
        run = Run(instance, unit.id, unit.role, tuple(map(_SUBJECT, tasks)))
        self._actions += self._background.starts(unit, run) if first.comparing else [run]

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
        if finished:
            self._admission.progressed = self.now
            if unit.role == DEPLOYED:
                self._tried.clear()
        if not lost:
            self.unit_on[unit.instance] = None
            if not unit.tasks:
                self._health.not_verified(unit, rest=rest)
                return False
            self._health.ended(unit, finished=finished, rest=rest)
        for task in unit.tasks:
            task.unit = task.instance = None
            if task.audited and not finished:
                self._audits.end(task)
        if unit.is_original:
            self._admission.ended(self.now, unit, finished=finished, lost=lost)
        if not unit.tasks or unit.tasks[0].comparing:
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
            if task.first:
                self.drop(task)
                query = self.queries.get(task.subject)
                if query is not None and query.state in WITHHELD:
                    self.queue_again(query.original)
                continue
            task.failed_on += (unit.instance,)
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
            for instance, tasks in self.dispatch.assign(self.max_batch, spread=self.config.spread):
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
        timers, wake_at = self._timers, self._wake_at if self._wake_at > self.now else inf
        while timers and timers[0][0] < wake_at:
            if timers[0][1] in self._callbacks:
                self._wake_at = wake_at = timers[0][0]
                self._actions.append(WakeAt(wake_at))
            else:
                heapq.heappop(timers)
        self._deciding = False
        actions, self._actions = self._actions, []
        return actions

    def _fire_timers(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            callback, about = self._callbacks.pop(heapq.heappop(self._timers)[1], (None, ()))
            if callback is not None:
                self.tell(about, callback)

    # The port: port.py describes these

    @property
    def nodes(self) -> int:
        return self.dispatch.nodes

    def queued(self, role: str) -> int:
        return self.dispatch.depths[role]

    def up(self, role: str) -> int:
        return len(self.dispatch.up[role])

    def copies_in_flight(self, query: Query) -> int:
        tasks = (task for apart in query.original.apart for task in apart)
        return sum(t.wanted and t.unit is not None and t.role != DEPLOYED for t in tasks)

    # Tasks

    def submit(
        self,
        role: str,
        group: int,
        kind: Hashable,
        members: Sequence[int],
        apart: list[Task],
        *,
        preemptible: bool = False,
    ) -> Task:
        task = Task(role, group, kind, preemptible=preemptible, members=members)
        self._submit(task, apart)
        return task

    def screen(self, query: Query) -> bool:
        if not query.screened:
            query.screened = True
            if not query.exact and self.is_unlike(query.id):
                query.exact, query.coded = True, False
        return not query.exact

    def ask(self, query: Query, *, first: bool = False, preemptible: bool = False) -> bool:
        if not self.screen(query):
            return False
        if first:
            self.advance(query, ASKED_FIRST)
            self.dispatch.remove(query.original)
            if query.backup is not None:
                self.drop(query.backup)
        apart: list[Task] = []
        self.keep_apart(query, apart)
        group = query.original.group
        query.backup = Task(BACKUP, query.id, query.kind, group, preemptible, first=first)
        self._submit(query.backup, apart)
        return True

    def _submit(self, task: Task, apart: list[Task]) -> None:
        task.wanted = self.redundancy_on
        task.apart.append(apart)
        apart.append(task)
        if task.wanted:
            self.dispatch.add(task)

    def copy(self, query: Query) -> None:
        if query.id not in self.queries or not self.redundancy_on:
            return
        group = query.original.group
        apart = [query.tasks, *(t for t in query.original.apart if t is not query.tasks)]
        task = Task(DEPLOYED, query.id, query.kind, group, apart=apart)
        for tasks in apart:
            tasks.append(task)
        self.dispatch.add(task, first=True)

    def drop(self, task: Task) -> None:
        if not task.wanted:
            return
        task.wanted = False
        task.apart.clear()  # breaks a reference cycle, so that memory is freed at once
        unit = task.unit
        if unit is None:
            if task.queue is not None:
                self.dispatch.remove(task)
        elif not any(other.wanted for other in unit.tasks):
            takes = self._background.takes(unit)
            where = unit.instance, unit.id
            self._actions.append(Compare(*where, late=True) if takes else Cancel(*where))

    def keep_apart(self, query: Query, apart: list[Task], group: int | None = None) -> None:
        query.original.apart.append(apart)
        apart.append(query.original)
        if group is not None:
            for task in query.tasks:
                task.group = group

    def keep_idle(self, instances: int) -> None:
        self.dispatch.reserve = instances

    def queue_again(self, task: Task) -> None:
        if task.wanted and task.unit is None:
            self.dispatch.add(task, first=True)
        query = self.queries.get(task.subject) if task.role == DEPLOYED else None
        if query is not None and not any(copy.unit for copy in query.tasks):
            self.advance(query, QUEUED)

    # Timers

    def set_timer(
        self, at: float, callback: Callable[[], None], about: Collection[int] = ()
    ) -> int:
        self._last_timer = timer = self._last_timer + 1
        self._callbacks[timer] = callback, about
        heapq.heappush(self._timers, (at, timer))
        if len(self._timers) > self._max_timers:
            self._timers = [entry for entry in self._timers if entry[1] in self._callbacks]
            heapq.heapify(self._timers)
            self._max_timers = 64 + 4 * len(self._timers)
        return timer

    def cancel_timer(self, *timers: int) -> None:
        for timer in timers:
            self._callbacks.pop(timer, None)

    def set_alarm(self, query: Query, at: float, callback: Callable[[], None]) -> None:
        self._callbacks.pop(query.alarm, None)
        query.alarm = self.set_timer(max(at, self.now + MIN_DELAY), callback, (query.id,))

    def tell(self, about: Collection[int], hook: Callable[..., None], *args: Any) -> None:
        try:
            hook(*args)
        except Exception as error:
            self._on_error(error, about)

    def _on_error(self, error: Exception, about: Collection[int]) -> None:
        _log.exception("the policy failed")
        self._broken += [(query, f"the policy failed: {error!r}") for query in about]

    # Answers

    def act(self, action: Action) -> None:
        self._actions.append(action)

    def decode(self, decode: Decode) -> None:
        for slot in decode.slots:
            self.queries[decode.members[slot]].decoding = True
        self._decodes.setdefault(decode.group, []).append(decode)
        self._deciding = True
        self._actions.append(decode)

    def answer(self, query: Query, source: Source, doubt: float = 0.0) -> None:
        self._actions.append(Answer(query.id, source, doubt))
        if source.stands_in:
            self._audits.answered(query)
        self._end_query(query)

    def fail(self, query: Query, reason: Reason, detail: str) -> None:
        self._actions.append(Fail(query.id, reason, detail))
        self._end_query(query)

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

    def advance(self, query: Query, event: QueryEvent) -> None:
        was = query.state
        try:
            query.state = state = TRANSITIONS[was][event]
        except KeyError:
            raise RuntimeError(f"query {query.id} is {was.name}, not to be {event.name}") from None
        if state is not was:
            self.waiting += (state in UNSTARTED) - (was in UNSTARTED)

    # Instances

    def verify(
        self, instance: str, role: str, probe: int, query: int | None = None, kind: Hashable = None
    ) -> Unit:
        self._last_unit += 1
        unit = Unit(self._last_unit, instance, role, [], self.now, kind)
        self.units[unit.id] = self.unit_on[instance] = unit
        self._actions.append(Verify(instance, unit.id, role, probe, query))
        return unit
