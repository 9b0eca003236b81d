"""The adaptive policy: what is late is asked of the best stand-in there is.

Every query runs on the deployed model. While it does, its age is watched. Once it is at risk
(risk.py), on a slow instance perhaps at once, the most beneficial of these is sent, by one rule
(benefit.py) and what is measured of each:

    a backup, for this query alone; if it is refused, one that comes after it, which is better;
    a parity query of this one and of others that are late, filled up with answered ones;
    an exact copy, which is all that an exact query gets, or one whose stand-in's answer was
    refused.

If that is late as well, the next is sent, by the same rule. What a backup says before its query is
late is kept until then. Nothing of this is preemptible: it is for the oldest queries. It is dear
while the load is high, and nothing is sent under overload. As long as no run times are known, a
query is late that has used up half of its time. Recently slow instances take last
(dispatch.LatencyAware), and nothing of this as long as others are up.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Annotated

from parity_models.options import Option
from parity_models.scheduling.actions import BACKUPS, DEPLOYED, Source, parity_role, source_of
from parity_models.scheduling.dispatch import Dispatch, LatencyAware
from parity_models.scheduling.front_door import Redundancy
from parity_models.scheduling.policies.budget import Budget
from parity_models.scheduling.policies.effect import Effect
from parity_models.scheduling.policies.erasures import NoCode, StandIns, rows_needed
from parity_models.scheduling.policies.groups import CodingGroups
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.policies.risk import PARITY, Risk, measured
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Query, Task, Unit

BURST = 20.0
"""Redundant tasks that may be sent at once after a time in which few were."""

OLDEST, RESERVE = 2.0, 12.0
"""So many of them are kept for queries older than this many median run times."""

HELD_UP = 0.001
"""Seconds by which an alarm is late if the driver's process was held up."""

Offer = tuple[float, str, Callable[[], None]]
"""What it is worth to send a query to a role, and how it is sent."""
NO_OFFER: Offer = (0.0, DEPLOYED, lambda: None)


class Adaptive(Policy):
    """Stand-ins and copies for late queries, as run times, load and the gate tell; see above.

    `run_times`, of the deployed model, are what is known to begin with; by default nothing. Times
    in seconds.
    """

    name = "adaptive"
    needs_stand_in = True

    MAX_TASKS = 3
    """How many tasks of a query run at most: one that is slow wherever it runs is slow itself, and
    one that ends instances is not to end more of them."""

    RISK = Risk
    """What decides from which ages on queries are at risk, and what it is worth to ask."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Policy.Options):
        """What can be set."""

        urgency: Annotated[
            float,
            Option(
                "What a second of waiting is worth to a query that is a median run time late, in "
                "seconds of an idle instance. More: asked earlier and more often.",
                above=0,
            ),
        ] = 100.0
        budget: Annotated[
            float,
            Option("Redundant tasks a query, on average, at most.", above=0, at_most=1),
        ] = 0.1

    def __init__(
        self,
        stand_ins: StandIns,
        options: Options | None = None,
        *,
        run_times: RunTimes | None = None,
    ) -> None:
        self.asks = stand_ins
        self._code = stand_ins.code or NoCode()
        self._rows = rows_needed(self._code)
        self._groups = CodingGroups(self._code, max_wait=None)
        roles = [*stand_ins.backups, *[PARITY] * bool(self._rows)]
        self._options = options = options or self.Options()
        self._risk = self.RISK(
            options.urgency, run_times or RunTimes(every=100), roles, options.budget
        )
        self._budget = Budget(options.budget, BURST)
        self._effect = Effect()
        self._unassisted: dict[int, Query] = {}
        """The queries whose original runs, and nothing else; the oldest first."""
        self._asked: dict[int, list[Task]] = {}
        """All tasks of each query for which something was sent, the original first."""
        self._early_answers: dict[int, Source] = {}
        """The queries of which a backup's answer is here, not given yet, and from which."""

    def roles(self, instances: int, parity_instances: int) -> list[frozenset[str]]:
        roles = {DEPLOYED, *self._risk.stand_ins, *map(parity_role, range(self._code.r))}
        return [frozenset(roles)] * (instances + parity_instances)

    def dispatch(self) -> Dispatch:
        return LatencyAware()

    def redundancy(self, port: Port) -> Redundancy:
        return Redundancy.BOTTLENECK if port.front_door.is_bottleneck else self._effect.state

    # What runs is watched

    def arrived(self, port: Port, query: Query) -> None:
        self._effect.arrived(port.now, query.id)
        self._budget.earn(self._effect.part)
        if query.original.instance is not None:  # in the queue of an instance
            self._watch(port, query, query.original)

    def starts(self, port: Port, task: Task) -> None:
        query = port.queries.get(task.subject)
        if query is None:
            return
        if task is query.original and query.id not in self._asked:
            self._unassisted.pop(query.id, None)  # it ran before, and failed
            self._unassisted[query.id] = query
        self._watch(port, query, task)

    def redundancy_starts(self, port: Port, task: Task) -> None:
        if task.role not in BACKUPS:
            self._groups.redundancy_starts(port, task)
        for query_id in self.inputs_of(task):
            query = port.queries.get(query_id)
            if query is not None:
                self._watch(port, query, task)

    def _watch(self, port: Port, query: Query, task: Task) -> None:
        """Look at the query once this task of it is at risk."""
        age = self._risk.age(query, task)
        began = port.now if task.unit is None else task.unit.started
        at = (port.now + query.due) / 2 if age is None else began + age + port.front_door.lag
        self._reconsider_at(port, query, at)

    def _reconsider_at(self, port: Port, query: Query, at: float) -> None:
        if query.id not in self._early_answers:  # else it is answered soon
            port.set_alarm(query, at, partial(self._reconsider, port, query, max(at, port.now)))

    # What is at risk is answered otherwise

    def _reconsider(self, port: Port, query: Query, due: float) -> None:
        """Send the most beneficial; look again after a median run time if nothing is worth it."""
        if port.now > due + HELD_UP:  # and so were reports, one of which may answer it
            port.set_alarm(query, port.now + HELD_UP, partial(self._reconsider, port, query, inf))
            return
        tasks = self._asked.get(query.id, [query.original])
        runs = [task for task in tasks if task.unit is not None]
        if query.crashes or len(runs) >= self.MAX_TASKS:
            return  # one that may end instances is tried alone
        newest = max(runs, key=_started, default=None)
        if newest is None and query.original.instance is None:
            return  # it waits in the queue, as all else would, and is looked at once it runs
        helps_from = self._effect.helps_from(query.id, query.arrived)
        if port.now < helps_from:
            if helps_from < query.due:
                self._reconsider_at(port, query, helps_from)
            return
        worth, role, send = NO_OFFER
        oldest = port.now - query.arrived > OLDEST * self._risk.benefit.median
        allowed = port.redundancy_on and not port.front_door.is_bottleneck
        if allowed and self._budget.is_left(0.0 if oldest else RESERVE):
            offers = self._offers(port, query, tasks, newest)
            worth, role, send = max(offers, key=lambda offer: offer[0], default=NO_OFFER)
        if worth > 0:
            send()
        else:
            port.held_back(role)
            again = self._risk.benefit.median or (query.due - port.now) / 2
            self._reconsider_at(port, query, port.now + again)

    def _offers(
        self, port: Port, query: Query, tasks: Sequence[Task], newest: Task | None
    ) -> Iterator[Offer]:
        """What may be sent for the query now; of what is worth the same, the cheapest first."""
        risk, taken, queued = self._risk, [task.role for task in tasks], port.queued(DEPLOYED)

        def worth(role: str, rows: int = 1, company: Sequence[Query] = ()) -> float:
            if not risk.late:  # as nothing is known: once each, while nothing waits
                return float(not queued and role not in taken[1:])
            choice = risk.choice(role, rows, again=query.refusals > 0)
            saved = risk.saved(port, choice, query, newest)
            saved += sum(risk.saved(port, choice, each, each.original) for each in company)
            # Who waits now will be as late as this query was when it began.
            waited = max(0.0, _started(query.original) - query.arrived)
            lateness = 1 + waited / risk.benefit.median
            waiting = lateness * queued / max(1, port.up(DEPLOYED))
            return saved - risk.benefit.cost(choice, waiting)

        for role in (*query.backups, DEPLOYED):
            if port.up(role) > taken.count(role):
                yield worth(role), role, partial(self._ask, port, query, role)
        exact = query.exact or query.exact_only
        if self._rows and port.up(PARITY) and PARITY not in taken and not exact:
            members = [query, *self._company(port, query, tasks)]
            if self._groups.can_form(members):
                rows = self._rows[len(members) - 1]
                send = partial(self._reconstruct, port, members, rows)
                yield worth(PARITY, rows, members[1:]), PARITY, send

    def _company(self, port: Port, query: Query, tasks: Sequence[Task]) -> list[Query]:
        """Other queries that are late, as many as there are places for in a parity query."""
        company: list[Query] = []
        # No two of one batch: one instance would hold up both.
        units = {None, *(task.unit for task in tasks)}
        for other in self._unassisted.values():
            late = port.now - _started(other.original) >= self._risk.late
            if not late or len(company) >= len(self._rows) - 1:
                break
            alike = (other.kind, other.tenant) == (query.kind, query.tenant)
            barred = (
                other.exact or other.crashes or other.exact_only or other.original.unit in units
            )
            if alike and not barred:
                company.append(other)
                units.add(other.original.unit)
        return company

    def _ask(self, port: Port, query: Query, role: str) -> None:
        self._budget.spend()
        tasks = self._tasks(port, query)
        if role == DEPLOYED:
            port.copy(query, avoid=self._risk.avoided)
        else:
            port.submit(role, query.id, query.kind, tasks, avoid=self._risk.avoided)

    def _reconstruct(self, port: Port, members: Sequence[Query], rows: int) -> None:
        for _ in range(rows):
            self._budget.spend()
        group = self._groups.form(port, members, rows, self._risk.avoided)
        for query in members:
            self._tasks(port, query).extend(group.tasks)

    def _tasks(self, port: Port, query: Query) -> list[Task]:
        """All tasks of the query, which run apart. Something is sent for it: it is looked at again
        once that starts."""
        port.cancel_timer(query.alarm)
        if query.id not in self._asked:
            self._asked[query.id] = []
            port.keep_apart(query, self._asked[query.id])
            self._unassisted.pop(query.id, None)
        return self._asked[query.id]

    # Answers

    def on_prediction(self, port: Port, task: Task) -> None:
        self._groups.on_prediction(port, task)
        query = port.queries.get(task.subject)
        if self._rows and query is not None and not query.exact and not query.crashes:
            self._groups.keep(port, query)

    def redundancy_finished(self, port: Port, task: Task) -> None:
        query = port.queries.get(task.subject)
        if task.role not in BACKUPS:
            self._groups.redundancy_finished(port, task)
        elif query is not None and task.role in query.backups:
            self._risk.stand_ins[task.role].answered(usable=True, again=query.refusals > 0)
            self._deliver(port, query, source_of(task.role))

    def _deliver(self, port: Port, query: Query, source: Source) -> None:
        """Answer with what this backup says, as soon as it may be given."""
        given = self._risk.given(_started(query.original))
        if port.now >= given:
            port.answer(query, source)
        else:
            self._early_answers[query.id] = source
            port.set_alarm(query, given, partial(port.answer, query, source))

    def refused(self, port: Port, query: Query, source: Source) -> None:
        self._risk.stand_ins[measured(source)].answered(usable=False, again=query.refusals > 1)
        tasks = self._asked.get(query.id, ())
        self._drop_backups(port, [task for task in tasks if task.role not in query.backups])
        self._watch(port, query, query.original)

    def resolved(self, port: Port, query: Query) -> None:
        now = port.now
        self._effect.ended(now, query.id, now - query.arrived, self._risk.helped_by)
        self._unassisted.pop(query.id, None)
        self._early_answers.pop(query.id, None)
        self._drop_backups(port, self._asked.pop(query.id, ()))
        if query.decoding:
            self._risk.stand_ins[PARITY].answered(usable=True, again=query.refusals > 0)
        self._groups.resolved(port, query)

    def on_loss_or_deadline(self, port: Port, query: Query) -> None:
        if query.id in self._early_answers:
            port.answer(query, self._early_answers[query.id])
        else:
            self._groups.on_loss_or_deadline(port, query)

    def inputs_of(self, task: Task) -> Collection[int]:
        return (task.subject,) if task.role in BACKUPS else self._groups.inputs_of(task)

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
                    self._reconsider_at(
                        port, other, port.now
                    )  # what was sent for it will not start

    def unit_ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        self._risk.budget = self._effect.part * self._options.budget
        self._risk.ended(port, unit, finished=finished)

    def _drop_backups(self, port: Port, tasks: Collection[Task]) -> None:
        for task in tasks:
            if task.role in BACKUPS:
                port.drop(task)


def _started(task: Task) -> float:
    return task.unit.started if task.unit else 0.0
