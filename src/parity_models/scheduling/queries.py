"""How queries begin, and how those end that no prediction answers in time.

A query is admitted or refused when it arrives. At its deadline it is answered by whatever can be
had (the policy is asked for it), else by the default prediction, or fails. One that still waits for
an instance when it can no longer be in time makes room before, if others wait as well.
"""

from collections.abc import Collection, Hashable, Iterable, Sequence
from functools import partial

from parity_models.scheduling.actions import DEPLOYED, Reason, Source
from parity_models.scheduling.scheduler_port import SchedulerPort
from parity_models.scheduling.work import Query, Task


class Queries:
    """See above. Times in seconds."""

    def __init__(self, port: SchedulerPort) -> None:
        self._port = port
        self._policy, self._config = port.policy, port.config
        self._dispatch, self._admission = port.dispatch, port.admission
        self._overdue: list[Query] = []

    def __len__(self) -> int:
        """How many are past their deadline, and being decoded."""
        return len(self._overdue)

    def arrived(
        self,
        now: float,
        queries: Sequence[int],
        kind: Hashable,
        deadline: float | None,
        tenant: Hashable,
        exact: Collection[int],
    ) -> None:
        """Queries arrived together, at `now`; all or none are admitted."""
        port, admission = self._port, self._admission
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
            return
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

    def failed(self, queries: Iterable[int], reason: Reason, detail: str) -> None:
        """Those of the queries that are pending fail."""
        for query_id in queries:
            query = self._port.queries.get(query_id)
            if query is not None:
                self._port.fail(query, reason, detail)

    def decoded(self, group: int, wrong: Collection[int]) -> None:
        """The oldest Decode of the group that is not reported yet has been carried out."""
        for slot, query_id in self._port.take_decode(group):
            query = self._port.queries.get(query_id)
            if query is None:
                continue
            if slot in wrong:
                query.decoding = False
                self.refused(query.id, Source.RECONSTRUCTION)
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

    def refused(self, query_id: int, source: Source) -> None:
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
