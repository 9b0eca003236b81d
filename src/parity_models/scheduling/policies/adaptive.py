"""The adaptive policy: late queries are answered by the best stand-in available.

Every query runs on the deployed model. Once it is late, which may be at once on a slow
instance, the most beneficial of these tasks is sent, by one rule (risk.py):

    the backup, for this query alone;
    a parity query of this and other late queries, padded with answered ones;
    an exact copy: the only choice for an exact query and after a stand-in's answer was refused.

A query that waits in the common queue for WAITED median run times gets the backup in place of its
original, which is queued again if the answer is refused. That saves work, so it needs no budget.

If that task takes long as well, the next one is sent by the same rule. A backup's answer that
arrives before the original is slow is held until then. Redundant tasks are not preemptible, as they
serve the oldest queries; their price rises with the load. While no run times are known, a query is
late once half of its time is used up. Slow instances get work last (dispatch.py), and no
redundant work while others are up. effect.py stops redundant work that does not help.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, takewhile
from math import inf
from typing import Annotated

from parity_models.options import Option
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.dispatch import LATENCY_AWARE
from parity_models.scheduling.policies.effect import Effect
from parity_models.scheduling.policies.groups import CodingGroups
from parity_models.scheduling.policies.policy import (
    Budget,
    Policy,
    Redundancy,
    StandIns,
    rows_needed,
)
from parity_models.scheduling.policies.risk import PARITY, Risk, measured
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import MIN_DELAY, Query, Task, Unit

BURST = 20.0
"""Redundant tasks that may be sent at once after a time in which few were."""

OLDEST, RESERVE = 2.0, 12.0
"""RESERVE of them are kept for older queries: a query that is OLDEST median run times old may use
all; one that is a median younger must leave RESERVE."""

WAITED = 0.5
"""Median run times in the common queue after which the backup takes the original's place."""

WHILE_BUSY = 0.1
"""Minimum seconds until queries are reconsidered while nothing redundant is sent."""

KEEP_ONE_IN = 8
"""One of this many answered queries is kept to complete groups of late ones; keeping costs time."""

HELD_UP = 0.001
"""An alarm that is more than this many seconds late means that the driver's process was held up."""

Offer = tuple[float, Callable[[], None]]
"""The worth of a task, and the function that sends it."""


class Adaptive(Policy):
    """Send the stand-in or copy that helps a late query most for its cost, within a budget.

    `run_times` are run times of the deployed model known in advance. Times in seconds.
    """

    name = "adaptive"
    needs_stand_in = True
    rule = LATENCY_AWARE

    MAX_TASKS = 3
    """The most tasks of a query that run at once: a query that is slow everywhere is slow itself,
    and one that crashes instances should not crash more of them."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Policy.Options):
        """The policy's options."""

        budget: Annotated[
            float, Option("Maximum redundant tasks per query, on average.", above=0, at_most=1)
        ] = 0.1

    def __init__(
        self,
        stand_ins: StandIns,
        options: Options | None = None,
        *,
        run_times: RunTimes | None = None,
    ) -> None:
        self.asks = stand_ins
        self._rows = rows_needed(stand_ins.code) if stand_ins.code else []
        self._groups = CodingGroups(stand_ins.code, max_wait=None)
        roles = [*[BACKUP] * stand_ins.backup, *[PARITY] * bool(self._rows)]
        options = options or self.Options()
        self._risk = Risk(run_times or RunTimes(every=100), roles, options.budget)
        self._budget = Budget(options.budget, BURST)
        self._effect = Effect()
        self._fresh: dict[int, Query] = {}
        """The queries with only their original running and not yet reconsidered, in the order in
        which their units began: the first is the next to be late."""
        self._timer = 0
        """The timer of the first of them."""
        self._last_kept: Task | None = None
        """The newest original that keeps its place in the queue, see `_keeps_place`."""
        self._unassisted: dict[int, Query] = {}
        """The other queries with only their original running."""
        self._asked: dict[int, list[Task]] = {}
        """All tasks of each query that has redundant ones, the original first."""
        self._early_answers: set[int] = set()
        """The queries whose answer, from the backup, is held until their original is slow."""

    def roles(self, instances: int, extra: int) -> list[frozenset[str]]:
        roles = {DEPLOYED, *self._risk.stand_ins, *self._groups.parity_roles}
        return [frozenset(roles)] * (instances + extra)

    def redundancy(self, port: Port) -> Redundancy:
        return Redundancy.BOTTLENECK if port.process_load.is_bottleneck else self._effect.state

    # Watch queries

    def arrived(self, port: Port, query: Query) -> None:
        effect = self._effect
        if port.now >= effect.acts_from:
            effect.arrived(port.now, query.id)
        self._budget.earn()
        if (
            self._may_ask(query)
            and not self._keeps_place(port, query)
            and port.queued(DEPLOYED) > port.dispatch.idle_for(DEPLOYED) * port.max_batch
        ):  # no instance is idle for it
            at = query.arrived + WAITED * self._risk.benefit.median
            port.set_alarm(query, at, partial(self._replace, port, query))

    def _replace(self, port: Port, query: Query) -> None:
        """Have the backup run in place of the original, which still waits, if that saves work."""
        waits = query.original.queue is not None and not query.crashes and self._may_ask(query)
        if not waits or not port.redundancy_on or self._keeps_place(port, query):
            return
        is_open = port.up(BACKUP) and Source.BACKUP not in port.closed_gates
        if is_open and self._risk.choice(BACKUP).work < self._risk.benefit.median:
            port.ask_first(query, self._tasks(port, query))

    def _may_ask(self, query: Query) -> bool:
        """Return whether the backup may answer the query."""
        return self.asks.backup and not query.exact

    def _keeps_place(self, port: Port, query: Query) -> bool:
        """Return whether the frontend is the bottleneck, or was when an older query arrived that
        still waits: a backup for this query would overtake it."""
        older = self._last_kept
        keeps = port.process_load.is_bottleneck or (older is not None and older.queue is not None)
        if keeps:
            self._last_kept = query.original
        return keeps

    def starts(self, port: Port, task: Task) -> None:
        query = port.queries.get(task.subject)
        if query is None:
            return
        if task is not query.original or query.id in self._asked:
            self._watch(port, query, task)
            return
        self._fresh.pop(query.id, None)  # if it ran before, and failed
        self._unassisted.pop(query.id, None)
        if query.exact or not self._risk.slow_from or task.instance in self._risk.slow:
            self._unassisted[query.id] = query
            self._watch(port, query, task)
            return
        if query.alarm:
            port.cancel_timer(query.alarm)
        self._fresh[query.id] = query
        if not self._timer:
            self._check_fresh(port, port.now)

    def redundancy_starts(self, port: Port, task: Task) -> None:
        if task.role != BACKUP:
            self._groups.redundancy_starts(port, task)
        for query_id in self.inputs_of(task):
            query = port.queries.get(query_id)
            if query is not None:
                self._watch(port, query, task)

    def _check_fresh(self, port: Port, due: float) -> None:
        """Reconsider the queries that are late by now; then wait for the next."""
        now, late = port.now, []
        age = self._risk.late_from + port.process_load.lag
        self._timer = 0
        if port.process_load.is_bottleneck:
            self._set_timer(port, now + max(age, WHILE_BUSY))
            return
        for query in self._fresh.values():
            unit = query.original.unit
            if unit is None:
                continue  # it failed, and waits
            if unit.started + age > now:
                self._set_timer(port, unit.started + age)
                break
            late.append(query)
        for query in late:
            del self._fresh[query.id]
            self._unassisted[query.id] = query
        for query in late:
            if query.id in self._unassisted:  # else it has joined another query's group
                began = _started(query.original)
                at = max(due, began + age)
                port.tell((query.id,), self._reconsider, port, query, at)

    def _set_timer(self, port: Port, at: float) -> None:
        at = max(at, port.now + MIN_DELAY)
        self._timer = port.set_timer(at, partial(self._check_fresh, port, at))

    def _watch(self, port: Port, query: Query, task: Task) -> None:
        """Reconsider the query once this task makes it late."""
        age = self._risk.age(query, task)
        began = port.now if task.unit is None else task.unit.started
        at = (port.now + query.due) / 2 if age is None else began + age + port.process_load.lag
        self._reconsider_at(port, query, at)

    def _reconsider_at(self, port: Port, query: Query, at: float) -> None:
        if query.id not in self._early_answers:  # else it is answered soon
            port.set_alarm(query, at, partial(self._reconsider, port, query, max(at, port.now)))

    # Help late queries

    def _reconsider(self, port: Port, query: Query, due: float) -> None:
        """Send the most beneficial task; if none is worth it, try again soon."""
        if port.now > due + HELD_UP:  # instances and reports were held up for as long, too
            at = 2 * port.now - due
            port.set_alarm(query, at, partial(self._reconsider, port, query, inf))
            return
        tasks = self._asked.get(query.id, [query.original])
        runs = [task for task in tasks if task.unit is not None]
        if query.crashes or len(runs) >= self.MAX_TASKS:
            return  # a query that may crash instances is tried alone
        if not runs:
            return  # other tasks would wait in the same queue; it is reconsidered once it runs
        newest = max(runs, key=_started)
        helps_from = self._effect.helps_from(query.id, query.arrived)
        if port.now < helps_from:
            if helps_from < query.due:
                self._reconsider_at(port, query, helps_from)
            return
        offer: Offer = (0.0, lambda: None)
        median, age = self._risk.benefit.median, port.now - query.arrived
        allowed = port.redundancy_on and not port.process_load.is_bottleneck
        spends_from = self._spends_from(median)
        if allowed and age >= spends_from:
            offers = self._offers(port, query, tasks, newest)
            offer = max(offers, key=lambda each: each[0], default=offer)
        if offer[0] > 0:
            offer[1]()
        else:
            again = median / 4 or (query.due - port.now) / 2
            again = min(again, spends_from - age) if spends_from > age else again
            again = again if allowed else max(again, WHILE_BUSY)
            self._reconsider_at(port, query, port.now + again)

    def _spends_from(self, median: float) -> float:
        """Return the age from which queries may use the rest of the budget."""
        spare = (self._budget.left - 1) / RESERVE
        return (0.0 if spare >= 1 else median * (OLDEST - spare)) if spare >= 0 else inf

    def _offers(
        self, port: Port, query: Query, tasks: Sequence[Task], newest: Task
    ) -> Iterator[Offer]:
        """Yield the tasks that may be sent for the query now, the cheapest first."""
        risk, taken = self._risk, [task.role for task in tasks]
        queued = port.queued(DEPLOYED) + port.queued(BACKUP)

        def worth(role: str, rows: int = 1, company: Sequence[Query] = ()) -> float:
            if not risk.slow_from:  # nothing is known yet: send each once, while nothing waits
                return float(not queued and role not in taken[1:])
            choice = risk.choice(role, rows)
            saved = risk.saved(port.now, choice, query, newest)
            saved += sum(risk.saved(port.now, choice, each, each.original) for each in company)
            # Queries that wait now will have waited as long as this one when they begin.
            waited = max(0.0, _started(query.original) - query.arrived)
            lateness = 1 + waited / risk.benefit.median
            waiting = lateness * queued / max(1, port.up(DEPLOYED))
            return saved - risk.benefit.cost(choice, waiting)

        for role in (*[BACKUP] * self._may_ask(query), DEPLOYED):
            if port.up(role) > taken.count(role):
                yield worth(role), partial(self._ask, port, query, role)
        coded = query.coded and not query.exact
        if self._rows and port.up(PARITY) and PARITY not in taken and coded:
            members = [query, *self._company(port, query, tasks)]
            if self._groups.can_form(members):
                rows = self._rows[len(members) - 1]
                send = partial(self._reconstruct, port, members, rows)
                yield worth(PARITY, rows, members[1:]), send

    def _company(self, port: Port, query: Query, tasks: Sequence[Task]) -> list[Query]:
        """Return other late queries, as many as fit into a parity query."""
        company: list[Query] = []
        # Take no two from one batch: one instance would hold up both.
        units = {None, *(task.unit for task in tasks)}
        began = port.now - self._risk.slow_from
        fresh = takewhile(lambda each: _started(each.original) <= began, self._fresh.values())
        for other in chain(self._unassisted.values(), fresh):
            if len(company) >= len(self._rows) - 1:
                break
            if _started(other.original) > began:
                continue
            alike = (other.kind, other.tenant) == (query.kind, query.tenant)
            barred = not other.coded or other.crashes or other.exact or other.original.unit in units
            if alike and not barred:
                company.append(other)
                units.add(other.original.unit)
        return company

    def _ask(self, port: Port, query: Query, role: str) -> None:
        self._budget.spend()
        tasks = self._tasks(port, query)
        if role == DEPLOYED:
            port.copy(query, avoid=self._risk.slow)
        else:
            port.submit(role, query.id, query.kind, tasks, avoid=self._risk.slow)

    def _reconstruct(self, port: Port, members: Sequence[Query], rows: int) -> None:
        for _ in range(rows):
            self._budget.spend()
        group = self._groups.form(port, members, rows, self._risk.slow)
        for query in members:
            self._tasks(port, query).extend(group.tasks)

    def _tasks(self, port: Port, query: Query) -> list[Task]:
        """Return the list of the query's tasks, which run apart; the caller adds the one it sends.

        The query is reconsidered once that task starts.
        """
        port.cancel_timer(query.alarm)
        if query.id not in self._asked:
            self._asked[query.id] = []
            port.keep_apart(query, self._asked[query.id])
            self._fresh.pop(query.id, None)
            self._unassisted.pop(query.id, None)
        return self._asked[query.id]

    # Answers

    def on_prediction(self, port: Port, task: Task) -> None:
        if task.group is not None:
            self._groups.on_prediction(port, task)
        query = port.queries.get(task.subject)
        if self._rows and query is not None and query.coded and not query.crashes:
            if query.id % KEEP_ONE_IN and self._groups.can_form((query,)):
                return
            self._groups.keep(port, (query.kind, query.tenant), query.id)

    def redundancy_finished(self, port: Port, task: Task) -> None:
        query = port.queries.get(task.subject)
        if task.role != BACKUP:
            self._groups.redundancy_finished(port, task)
        elif query is not None and not query.exact:
            self._risk.stand_ins[BACKUP].answered(usable=True)
            given = _started(query.original) + self._risk.slow_from
            if query.withheld or port.now >= given:
                port.answer(query, Source.BACKUP)
            else:
                self._early_answers.add(query.id)
                port.set_alarm(query, given, partial(port.answer, query, Source.BACKUP))

    def refused(self, port: Port, query: Query, source: Source) -> None:
        self._risk.stand_ins[measured(source)].answered(usable=False)
        self._drop_backups(port, self._asked.get(query.id, ()))
        self._watch(port, query, query.original)

    def resolved(self, port: Port, query: Query) -> None:
        latency, effect, limit = port.now - query.arrived, self._effect, self._risk.helped_by
        if latency > limit or effect.counts_all:
            effect.ended(port.now, query.id, latency, limit)
        else:
            effect.in_time += 1
        if self._fresh.pop(query.id, None) is not None:
            return
        self._unassisted.pop(query.id, None)
        self._early_answers.discard(query.id)
        tasks = self._asked.pop(query.id, None)
        if tasks is not None:
            self._drop_backups(port, tasks)
        if query.decoding:
            self._risk.stand_ins[PARITY].answered(usable=True)
        if query.original.group is not None:
            self._groups.resolved(port, query)

    def on_loss_or_deadline(self, port: Port, query: Query) -> None:
        if query.id in self._early_answers:
            port.answer(query, Source.BACKUP)

    def inputs_of(self, task: Task) -> Collection[int]:
        return (task.subject,) if task.role == BACKUP else self._groups.inputs_of(task)

    def copies_in_flight(self, port: Port, query: Query) -> int:
        tasks = self._asked.get(query.id, ())
        return sum(task.unit is not None and task.role != DEPLOYED for task in tasks)

    def on_suspected_poison(self, port: Port, query: Query) -> None:
        queued = [task for task in self._asked.get(query.id, ()) if task.unit is None]
        self._drop_backups(port, queued)
        self._groups.on_suspected_poison(port, query)
        for task in queued:
            for other in map(port.queries.get, self.inputs_of(task)):
                if other is not None and other is not query:
                    # The tasks sent for it will not start.
                    self._reconsider_at(port, other, port.now)

    def unit_ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        self._risk.ended(
            port.now,
            unit,
            finished=finished,
            instances=port.dispatch.up[DEPLOYED],
            max_batch=port.max_batch,
        )

    def _drop_backups(self, port: Port, tasks: Collection[Task]) -> None:
        for task in tasks:
            if task.role == BACKUP:
                port.drop(task)


def _started(task: Task) -> float:
    return task.unit.started if task.unit else 0.0
