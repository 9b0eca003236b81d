"""The life cycle of coding groups, shared by the policies with a code.

    open     queries join in order of arrival; each is dispatched at once, as if uncoded.
             Where instances share nodes, a query joins at dispatch, in a group without members on
             its node, so that no original waits for a particular node. Queries of different kinds
             or tenants never share a group; uncoded queries join none
    closed   it has k members: full, or, when one of them has waited `max_wait`, filled up with
             recently answered queries, whose predictions are known. Its parity tasks are queued
    over     every member is answered or failed; parity work still queued is dropped

A group of late queries, which are running already, is formed closed (`form`).

While a group is closed, each prediction or parity output that arrives may make missing predictions
decodable; the code says which, from masks alone. A decodable query is answered at once.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from parity_models.roles import parity_role
from parity_models.scheduling.actions import Decode, Encode, ForgetGroup
from parity_models.scheduling.policies.policy import Erasures, Policy
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query, Task

MAX_SHARERS = 16
"""The number of kinds and tenants, the latest, whose padding and answered open groups are kept."""


Sharers = tuple[Hashable, Hashable]
"""The kind and tenant that the queries of a group share."""


@dataclass(slots=True, eq=False)
class CodingGroup:
    """k queries encoded together; lists are by slot, `parities` by row.

    `apart` are all tasks that run for it: the originals of its members, and its parity `tasks`.
    Its members, padding included, are of one `kind` and of one `tenant`.
    `suspected`: a member may end the instance that runs it, so the group is not encoded.
    """

    id: int
    kind: Hashable
    tenant: Hashable
    members: list[int] = field(default_factory=list)
    available: list[bool] = field(default_factory=list)
    resolved: list[bool] = field(default_factory=list)
    parities: list[bool] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    apart: list[Task] = field(default_factory=list)
    timer: int = 0
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


class CodingGroups(Policy):
    """The coding groups of one scheduler, and the hooks that keep them; see above.

    `max_wait` bounds how long a query waits for its group to fill, in seconds; None: no bound.
    """

    def __init__(self, code: Erasures | None, *, max_wait: float | None) -> None:
        self.max_wait = max_wait
        self._code = code
        self._k = code.k if code else 0
        self.parity_roles = [parity_role(j) for j in range(code.r if code else 0)]
        self._open: OrderedDict[Sharers, list[CodingGroup]] = OrderedDict()
        self._groups: dict[int, CodingGroup] = {}
        self._padding: OrderedDict[Sharers, deque[int]] = OrderedDict()
        self._ids = count(1)

    def of(self, query: Query) -> CodingGroup | None:
        """Return the group that a pending query has joined, if any."""
        group = query.original.group
        return None if group is None else self._groups.get(group)

    def can_form(self, queries: Sequence[Query]) -> bool:
        """Return whether enough answered queries are kept (`keep`) to fill up a group of these."""
        sharers = (queries[0].kind, queries[0].tenant)
        return len(self._padding.get(sharers, ())) >= self._k - len(queries)

    def form(self, port: Port, queries: Sequence[Query], rows: int) -> CodingGroup:
        """Form a closed group of late queries, to be reconstructed from this many parity queries.

        It is filled up with answered queries (`can_form`).
        """
        group = CodingGroup(next(self._ids), queries[0].kind, queries[0].tenant)
        padding = list(self._padding.get(group.sharers, ()))
        missing = self._k - len(queries)
        self._groups[group.id] = group
        for query in queries:
            self._enter(port, group, query)
        self._fill(port, group, padding[:missing])
        self._submit(port, group, rows, preemptible=False)
        return group

    # Hooks

    def arrived(self, port: Port, query: Query) -> None:
        if query.coded and port.nodes < self._k and port.screen(query):
            self._join(port, query)

    def starts(self, port: Port, task: Task) -> None:
        query = port.queries.get(task.subject)
        joins = query is not None and task is query.original and query.coded and not query.crashes
        if query is not None and joins and self.of(query) is None and port.screen(query):
            self._join(port, query)

    def on_prediction(self, port: Port, task: Task) -> None:
        group = None if task.group is None else self._groups.get(task.group)
        if group is None:
            return
        group.available[group.members.index(task.subject)] = True
        self._decode(port, group)
        if self.max_wait is not None:
            self.keep(port, group.sharers, task.subject)

    def redundancy_starts(self, port: Port, task: Task) -> None:
        group = self._groups[task.subject]
        if not group.encoded:
            group.encoded = True
            port.act(Encode(group.id, tuple(group.members), group.wait))

    def redundancy_finished(self, port: Port, task: Task) -> None:
        group = self._groups.get(task.subject)
        if group is not None:
            group.parities[group.tasks.index(task)] = True
            self._decode(port, group)

    def resolved(self, port: Port, query: Query) -> None:
        group = self.of(query)
        if group is None:
            return
        group.resolved[group.members.index(query.id)] = True
        if not all(group.resolved):
            return
        if group.suspected or len(group.members) == self._k:
            self._end(port, group)
        elif sum(all(other.resolved) for other in self._open[group.sharers]) > 1:
            self._no_longer_open(group)  # one fully answered group is enough for the next query
            self._end(port, group)
        while len(self._open) > MAX_SHARERS:
            oldest = next(iter(self._open.values()))
            if not all(all(other.resolved) for other in oldest):
                break
            for other in tuple(oldest):
                self._no_longer_open(other)
                self._end(port, other)

    def on_suspected_poison(self, port: Port, query: Query) -> None:
        group = self.of(query)
        if group is None or group.suspected:
            return
        group.suspected = True
        if len(group.members) < self._k:
            self._no_longer_open(group)
        self._cancel_timer(port, group)
        for task in group.tasks:
            if task.unit is None:
                port.drop(task)

    # Inside

    def _join(self, port: Port, query: Query) -> None:
        group = self._open_group(port, query)
        if all(group.resolved):
            self._cancel_timer(port, group)
            group.waiting_since = port.now
            group.overdue = False
        self._enter(port, group, query)
        if len(group.members) == self._k:
            self._close(port, group)
        elif not group.timer and self.max_wait is not None:
            at = group.waiting_since + self.max_wait
            group.timer = port.set_timer(at, partial(self._pad, port, group), group.members)

    def _enter(self, port: Port, group: CodingGroup, query: Query) -> None:
        group.join(query.id, answered=False)
        port.keep_apart(query, group.apart, group.id)
        port.hold(query.id)

    def _fill(self, port: Port, group: CodingGroup, padding: Collection[int]) -> None:
        for query in padding:
            port.hold(query)
            group.join(query, answered=True)

    def _open_group(self, port: Port, query: Query) -> CodingGroup:
        """Return the oldest open group of its kind that the query may join, or a new one."""
        groups = self._open.setdefault((query.kind, query.tenant), [])
        self._open.move_to_end((query.kind, query.tenant))
        original = query.original
        for group in groups:
            if original.unit and any(task.unit is original.unit for task in group.apart):
                continue  # a batch with two members would hold up both
            if port.nodes < self._k or not port.shares_node(original, group.apart):
                return group
        group = CodingGroup(next(self._ids), query.kind, query.tenant)
        groups.append(group)
        self._groups[group.id] = group
        return group

    def _no_longer_open(self, group: CodingGroup) -> None:
        groups = self._open[group.sharers]
        groups.remove(group)
        if not groups:
            del self._open[group.sharers]

    def _close(self, port: Port, group: CodingGroup) -> None:
        self._no_longer_open(group)
        self._cancel_timer(port, group)
        group.wait = port.now - group.waiting_since
        self._submit(port, group, len(self.parity_roles), preemptible=True)

    def _submit(self, port: Port, group: CodingGroup, rows: int, *, preemptible: bool) -> None:
        group.parities = [False] * len(self.parity_roles)
        group.tasks = [
            port.submit(
                role, group.id, group.kind, group.members, group.apart, preemptible=preemptible
            )
            for role in self.parity_roles[:rows]
        ]

    def _pad(self, port: Port, group: CodingGroup) -> None:
        """Close a group that has waited long enough, if there is enough padding."""
        group.timer = 0
        if all(group.resolved):
            return
        group.overdue = True
        missing = self._k - len(group.members)
        padding = [q for q in self._padding.get(group.sharers, ()) if q not in group.members]
        if len(padding) < missing:
            return
        self._fill(port, group, padding[-missing:])
        self._close(port, group)

    def keep(self, port: Port, sharers: Sharers, query: int) -> None:
        """Keep an answered query, as padding for groups of its kind and tenant.

        The latest are kept, so that an outlier, or a query answered wrongly, is in few groups.
        """
        known = query in self._padding.get(sharers, ())  # a copy of it has run as well
        if not known and not port.hold(query):
            return
        kept = self._padding.setdefault(sharers, deque())
        self._padding.move_to_end(sharers)
        if known:
            return
        kept.append(query)
        # A group cannot be padded with its own members, so k - 1 others need 2k - 2 places.
        if len(kept) > 2 * self._k - 2:
            port.release(kept.popleft())
        if len(self._padding) > MAX_SHARERS:
            for other in self._padding.popitem(last=False)[1]:
                port.release(other)
        for group in list(self._open.get(sharers, ())):
            if group.overdue:
                self._pad(port, group)

    def _decode(self, port: Port, group: CodingGroup) -> None:
        """Decode the members that can be reconstructed."""
        if self._code is None or not any(group.parities):
            return
        available, parities = tuple(group.available), tuple(group.parities)
        decodable = self._code.decodable(available, parities)
        members = tuple(group.members)
        waiting = [port.queries.get(member) for member in members]
        ready = tuple(
            slot
            for slot, query in enumerate(waiting)
            if query and decodable[slot] and not (query.decoding or query.exact)
        )
        if ready:
            port.decode(Decode(group.id, members, available, parities, ready))

    def _end(self, port: Port, group: CodingGroup) -> None:
        del self._groups[group.id]
        self._cancel_timer(port, group)
        for task in group.tasks:
            port.drop(task)
        for query in group.members:
            port.release(query)
        if group.encoded:
            port.act(ForgetGroup(group.id))

    def _cancel_timer(self, port: Port, group: CodingGroup) -> None:
        port.cancel_timer(group.timer)
        group.timer = 0
