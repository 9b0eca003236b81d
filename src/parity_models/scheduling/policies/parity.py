"""Coded resilience: every k queries are accompanied by r parity queries.

The life of a coding group (Kosaian et al., SOSP 2019, section 3):

    open     queries join in order of arrival; each is dispatched at once, as if uncoded.
             Where instances share nodes, they join when they are dispatched, a group that has
             none on the same node: then no original waits for a certain node. Queries of
             different kinds or tenants never share a group; exact queries join none
    closed   it has k members: full, or, when one of them has waited `max_group_wait`, filled up
             with recently answered queries, whose predictions are known. Its parity tasks are
             queued (after `parity_delay`, if the group still needs them then).
    over     every member is answered or failed; parity work still queued is dropped

While a group is closed, whatever arrives (a prediction or a parity output) may make missing
predictions decodable; the code says which, from masks alone. The answer rule says whether a
decodable query is answered at once (`first`) or only once it has waited `answer_after`
(`deadline`); a query whose instance failed, or whose own deadline is here, never waits.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Protocol

from parity_models.scheduling.actions import (
    DEPLOYED,
    Decode,
    Encode,
    ForgetGroup,
    Source,
    parity_work,
)
from parity_models.scheduling.policies.answer_rule import AnswerRule
from parity_models.scheduling.policies.margin import Margin
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.timers import Timer
from parity_models.scheduling.work import Query, Task, Unit

if TYPE_CHECKING:
    from parity_models.scheduling.scheduler import Scheduler

SHARERS_KEPT = 16
"""For how many kinds and tenants (the most recently seen) padding, and a group that is open
though all its members are answered, are kept."""


Sharers = tuple[Hashable, Hashable]
"""The queries that may share a group: of this kind, and of this tenant."""


class Erasures(Protocol):
    """What scheduling asks of a code: its size, and what can be decoded (codes.Code fits)."""

    @property
    def k(self) -> int: ...

    @property
    def r(self) -> int: ...

    def decodable(
        self, available: tuple[bool, ...], parities: tuple[bool, ...]
    ) -> tuple[bool, ...]: ...


class Pool(StrEnum):
    """Where parity models run."""

    DEDICATED = "dedicated"
    """On instances of their own, as in the paper."""
    SHARED = "shared"
    """On every instance, at lower priority than originals: spare capacity only (margin.py)."""


@dataclass(slots=True, eq=False)
class CodingGroup:
    """k queries encoded together; lists are by slot, `parities` by row.

    `units` are all tasks that run for it: the originals of its members, and its parity `tasks`.
    Its members, padding included, are of one `kind` and of one `tenant`.
    `suspected`: a member may end the instance that runs it, so that it is not to be encoded.
    """

    id: int
    kind: Hashable
    tenant: Hashable
    members: list[int] = field(default_factory=list)
    available: list[bool] = field(default_factory=list)
    resolved: list[bool] = field(default_factory=list)
    parities: list[bool] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    units: list[Task] = field(default_factory=list)
    timer: Timer | None = None
    waiting_since: float = 0.0
    wait: float = 0.0
    overdue: bool = False
    encoded: bool = False
    suspected: bool = False

    @property
    def sharers(self) -> Sharers:
        return self.kind, self.tenant

    def join(self, query: int, *, answered: bool) -> None:
        self.members.append(query)
        self.available.append(answered)
        self.resolved.append(answered)


class Parity(Policy):
    """The parity policy; see above. Times in seconds.

    `code` says k, r and what is decodable. `max_group_wait` bounds how long a query waits for
    its group to fill; None waits for as long as it takes.
    """

    def __init__(
        self,
        code: Erasures,
        *,
        pool: Pool = Pool.SHARED,
        max_group_wait: float | None = 0.01,
        parity_delay: float = 0.0,
        answer_rule: AnswerRule = AnswerRule.FIRST,
        answer_after: float = 0.0,
    ) -> None:
        self._run_times = RunTimes()
        self._margin = Margin(self._run_times)
        self._code = code
        self._pool = pool
        self._max_group_wait = max_group_wait
        self._parity_delay = parity_delay
        self._answer_after = answer_after if answer_rule is AnswerRule.DEADLINE else 0.0
        self._open: OrderedDict[Sharers, list[CodingGroup]] = OrderedDict()
        self._groups: dict[int, CodingGroup] = {}
        self._padding: OrderedDict[Sharers, deque[int]] = OrderedDict()

    def works(self, instances: int, parity_instances: int) -> list[frozenset[str]]:
        parity = frozenset(parity_work(j) for j in range(self._code.r))
        deployed = frozenset({DEPLOYED})
        if self._pool is Pool.SHARED:
            return [deployed | parity] * (instances + parity_instances)
        return [deployed] * instances + [parity] * parity_instances

    def arrived(self, scheduler: Scheduler, query: Query) -> None:
        scheduler.keep_idle(self._margin.kept(scheduler.pending))
        if query.exact:
            return
        if scheduler.nodes < self._code.k or scheduler.is_placed(query.original):
            self._join(scheduler, query)

    def starts(self, scheduler: Scheduler, task: Task) -> None:
        query = scheduler.pending_query(task.subject)
        if query is None or query.exact or query.kills or task is not query.original:
            return
        if self._group_of(query) is None:
            self._join(scheduler, query)

    def _join(self, scheduler: Scheduler, query: Query) -> None:
        group = self._open_group(scheduler, query)
        if all(group.resolved):
            self._cancel_timer(scheduler, group)
            group.waiting_since = scheduler.now
            group.overdue = False
        group.join(query.id, answered=False)
        group.units.append(query.original)
        query.original.spread.append(group.units)
        scheduler.hold(query.id)
        query.original.apart = group.id
        if len(group.members) == self._code.k:
            self._close(scheduler, group)
        elif group.timer is None and self._max_group_wait is not None:
            at = group.waiting_since + self._max_group_wait
            group.timer = scheduler.set_timer(
                at, partial(self._pad, scheduler, group), group.members
            )

    def _open_group(self, scheduler: Scheduler, query: Query) -> CodingGroup:
        """The oldest open group of its kind that the query may join, or a new one."""
        groups = self._open.setdefault((query.kind, query.tenant), [])
        self._open.move_to_end((query.kind, query.tenant))
        original = query.original
        for group in groups:
            if original.unit and any(task.unit is original.unit for task in group.units):
                continue  # a batch with two members would hold up both
            if scheduler.nodes < self._code.k or not scheduler.beside(original, group.units):
                return group
        group = CodingGroup(scheduler.new_id(), query.kind, query.tenant)
        groups.append(group)
        self._groups[group.id] = group
        return group

    def predicted(self, scheduler: Scheduler, task: Task) -> None:
        group = None if task.apart is None else self._groups.get(task.apart)
        if group is None:
            return
        group.available[group.members.index(task.subject)] = True
        self._decode(scheduler, group)
        if self._max_group_wait is not None and scheduler.held(task.subject):
            self._keep_as_padding(scheduler, group.sharers, task.subject)

    def redundancy_starts(self, scheduler: Scheduler, task: Task) -> None:
        group = self._groups[task.subject]
        if not group.encoded:
            group.encoded = True
            scheduler.emit(Encode(group.id, tuple(group.members), group.wait))

    def redundancy_finished(self, scheduler: Scheduler, task: Task) -> None:
        group = self._groups.get(task.subject)
        if group is not None:
            group.parities[group.tasks.index(task)] = True
            self._decode(scheduler, group)

    def unit_ended(self, scheduler: Scheduler, unit: Unit, *, finished: bool) -> None:
        if unit.tasks[0].work == DEPLOYED:
            self._margin.ran(unit, scheduler.max_batch)
            self._ran(scheduler.now - unit.started, finished=finished)

    def may_answer(self, scheduler: Scheduler, query: Query) -> bool:
        group = self._group_of(query)
        return group is not None and any(task.unit for task in group.tasks)

    def urgent(self, scheduler: Scheduler, query: Query) -> None:
        group = self._group_of(query)
        if group is not None:
            self._decode(scheduler, group, urgent=query.id)

    def resolved(self, scheduler: Scheduler, query: Query) -> None:
        self._margin.answered(scheduler.now - query.arrived)
        group = self._group_of(query)
        if group is None:
            return
        group.resolved[group.members.index(query.id)] = True
        if not all(group.resolved):
            return
        if group.suspected or len(group.members) == self._code.k:
            self._end(scheduler, group)
        elif sum(all(other.resolved) for other in self._open[group.sharers]) > 1:
            self._no_longer_open(group)  # one is enough for the next query to complete
            self._end(scheduler, group)
        while len(self._open) > SHARERS_KEPT:
            oldest = next(iter(self._open.values()))
            if not all(all(other.resolved) for other in oldest):
                break
            for other in tuple(oldest):
                self._no_longer_open(other)
                self._end(scheduler, other)

    def carries(self, task: Task) -> Collection[int]:
        if task.work == DEPLOYED:
            return (task.subject,)
        group = self._groups.get(task.subject)
        return group.members if group else ()

    def exposes(self, scheduler: Scheduler, query: Query) -> int:
        group = self._group_of(query)
        return sum(task.unit is not None for task in group.tasks) if group else 0

    def suspected(self, scheduler: Scheduler, query: Query) -> None:
        group = self._group_of(query)
        if group is None or group.suspected:
            return
        group.suspected = True
        if len(group.members) < self._code.k:
            self._no_longer_open(group)
        self._cancel_timer(scheduler, group)
        for task in group.tasks:
            if task.unit is None:
                scheduler.drop(task)

    def _ran(self, seconds: float, *, finished: bool) -> None:
        """A unit of originals has run for so long, to its end or not."""
        self._run_times.add(seconds, finished=finished)

    def _group_of(self, query: Query) -> CodingGroup | None:
        """The group of a query that is pending, if it has joined one."""
        return None if query.original.apart is None else self._groups.get(query.original.apart)

    def _no_longer_open(self, group: CodingGroup) -> None:
        groups = self._open[group.sharers]
        groups.remove(group)
        if not groups:
            del self._open[group.sharers]

    def _close(self, scheduler: Scheduler, group: CodingGroup) -> None:
        self._no_longer_open(group)
        self._cancel_timer(scheduler, group)
        group.wait = scheduler.now - group.waiting_since
        group.parities = [False] * self._code.r
        if self._parity_delay > 0:
            at = scheduler.now + self._parity_delay
            group.timer = scheduler.set_timer(
                at, partial(self._send, scheduler, group), group.members
            )
        else:
            self._send(scheduler, group)

    def _send(self, scheduler: Scheduler, group: CodingGroup) -> None:
        group.tasks = [
            Task(parity_work(j), group.id, group.kind, spare=True, spread=[group.units])
            for j in range(self._code.r)
        ]
        group.units += group.tasks
        for task in group.tasks:
            scheduler.submit(task)

    def _pad(self, scheduler: Scheduler, group: CodingGroup) -> None:
        """Close a group that has waited long enough, if there is padding enough."""
        group.timer = None
        if all(group.resolved):
            return
        group.overdue = True
        missing = self._code.k - len(group.members)
        padding = [q for q in self._padding.get(group.sharers, ()) if q not in group.members]
        if len(padding) < missing:
            return
        for query in padding[-missing:]:
            scheduler.hold(query)
            group.join(query, answered=True)
        self._close(scheduler, group)

    def _keep_as_padding(self, scheduler: Scheduler, sharers: Sharers, query: int) -> None:
        kept = self._padding.setdefault(sharers, deque())
        self._padding.move_to_end(sharers)
        if query in kept:  # a copy of it has run as well
            return
        scheduler.hold(query)
        kept.append(query)
        # A group's own members are no padding for it, so k - 1 others need 2k - 2 places.
        if len(kept) > 2 * self._code.k - 2:
            scheduler.release(kept.popleft())
        if len(self._padding) > SHARERS_KEPT:
            for other in self._padding.popitem(last=False)[1]:
                scheduler.release(other)
        for group in list(self._open.get(sharers, ())):
            if group.overdue:
                self._pad(scheduler, group)

    def _decode(self, scheduler: Scheduler, group: CodingGroup, urgent: int | None = None) -> None:
        """Answer the members that can be reconstructed and, by the answer rule, should be now."""
        if not any(group.parities):
            return
        available, parities = tuple(group.available), tuple(group.parities)
        decodable = self._code.decodable(available, parities)
        ready: dict[int, Query] = {}
        for slot, query_id in enumerate(group.members):
            query = scheduler.pending_query(query_id)
            if query is None or not decodable[slot] or query.decoding or query.spoiled:
                continue
            due = query.arrived + self._answer_after
            if scheduler.now >= due or query.was_lost or query_id == urgent:
                ready[slot] = query
            elif query.alarm is None:
                query.alarm = scheduler.set_timer(
                    due, partial(self._decode, scheduler, group), (query_id,)
                )
        if ready:
            for query in ready.values():
                query.decoding = True
            members = tuple(group.members)
            scheduler.decode(Decode(group.id, members, available, parities, tuple(ready)))

    def decoded(self, scheduler: Scheduler, group: int, wrong: Collection[int]) -> None:
        closed = self._groups.get(group)
        for slot, query_id in enumerate(closed.members if closed else ()):
            query = scheduler.pending_query(query_id)
            if query is None or not query.decoding:
                continue
            query.decoding = False
            if slot in wrong:
                query.spoiled = True
            else:
                scheduler.answer(query, Source.RECONSTRUCTION)

    def _end(self, scheduler: Scheduler, group: CodingGroup) -> None:
        del self._groups[group.id]
        self._cancel_timer(scheduler, group)
        for task in group.tasks:
            scheduler.drop(task)
        for query in group.members:
            scheduler.release(query)
        if group.encoded:
            scheduler.emit(ForgetGroup(group.id))

    def _cancel_timer(self, scheduler: Scheduler, group: CodingGroup) -> None:
        scheduler.cancel_timer(group.timer)
        group.timer = None
