"""Compare stand-ins with the model in the background, to know how right they are at all times.

Most queries are answered before the output of their stand-in is here, and its unit is cancelled.
Now and then one may finish, and its outputs are compared with the model's predictions.

Where nothing is late, no stand-in is asked. So now and then, at most once in `compare_every`
seconds, a query that the deployed model has just answered is run on a stand-in as well, for nobody
but the comparison. The stand-ins take turns. For a parity model that takes as many answered queries
as are in a group, of one kind and tenant.

It costs little: one unit at a time is compared, as it takes an instance's time. An answered query
is run only if an instance is idle at once and no query waits, it is never tried again, and nothing
is kept of it once it runs.
"""

from collections.abc import Hashable, Mapping
from itertools import count

from parity_models.scheduling.actions import (
    BACKUPS,
    DEPLOYED,
    Compare,
    Encode,
    ForgetGroup,
    Run,
    Source,
    parity_role,
    source_of,
)
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.policies.erasures import StandIns, rows_needed
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query, Task, Unit


class BackgroundComparison:
    """Chooses what is compared. Times in seconds.

    Of the units of stand-ins that nobody needs any more it takes one in `one_in`; while the gate of
    their source is closed, all that can be had, so that it opens again soon. It has answered
    queries compared `every` so many seconds; never, if that is 0. `stand_ins` are those that may be
    asked; those of which no instance is up are passed over. `running` are the units that run, by
    id.
    """

    def __init__(
        self,
        port: Port,
        dispatch: Dispatch,
        stand_ins: StandIns,
        running: Mapping[int, Unit],
        *,
        one_in: int,
        every: float,
    ) -> None:
        self._port = port
        self._dispatch = dispatch
        self._running = running
        self._one_in = one_in
        self._every = every
        self._closed: set[Source] = set()
        self._not_needed = 0
        self._compared: int | None = None
        """The unit that is compared, or was last."""
        self._sizes = _sizes(stand_ins) if every > 0 else {}
        """How many queries a task of each role takes; the next role first."""
        self._next: float | None = None
        self._kept: list[int] = []
        """Answered queries that wait for as many others as are in a group."""
        self._sharers: tuple[Hashable, Hashable] = (None, None)
        self._since = 0.0
        self._task: Task | None = None
        self._ids = count(-1, -1)  # those of policies are above 0

    def __len__(self) -> int:
        """How many things are remembered besides the queries that are held."""
        return self._task is not None

    def gate_turned(self, source: Source, *, is_open: bool) -> None:
        """The gate of a source has opened or closed; all are open at first."""
        if is_open:
            self._closed.discard(source)
        else:
            self._closed.add(source)

    def takes(self, unit: Unit) -> bool:
        """May this unit, which nobody needs any more, finish to be compared? If so, an answered
        query that has not started is given up for it."""
        if unit.role == DEPLOYED:
            return False
        self._not_needed += 1
        is_due = self._not_needed % self._one_in == 0 or source_of(unit.role) in self._closed
        if self._is_busy or not is_due:
            return False
        self._compared = unit.id
        self.settle()
        return True

    def answered(self, query: Query) -> None:
        """The deployed model's prediction for this query is here, and is about to be its answer."""
        if not self._sizes:
            return
        now = self._port.now
        if self._next is None:
            self._next = now + self._every
        if now < self._next or self._task is not None or self._is_busy:
            return
        if query.exact or query.spoiled or query.kills:
            return
        role = next(iter(self._sizes))
        if not self._dispatch.up(role):
            self._turn()
        elif self._dispatch.idle_for(role) and not self._port.queued(DEPLOYED):
            self._keep(query)
            if len(self._kept) == self._sizes[role]:
                self._queue(role, query)

    def starts(self, unit: Unit, run: Run) -> list[Encode | Run | Compare | ForgetGroup]:
        """The task that was queued is about to run as `run`; what is to be done, in order.

        The predictions are taken at `Compare`, so that nothing is kept any more from then on.
        """
        (task,) = unit.tasks
        task.wanted = False  # it is not tried again
        self._compared = unit.id
        actions: list[Encode | Run | Compare | ForgetGroup] = [
            run,
            Compare(unit.instance, unit.id),
        ]
        if task.role not in BACKUPS:
            members = tuple(self._kept)
            actions = [Encode(task.subject, members, 0.0), *actions, ForgetGroup(task.subject)]
        self._task = None
        self._release()
        self._next = self._port.now + self._every
        self._turn()
        return actions

    def settle(self) -> None:
        """All that can start has started: what has not is given up."""
        if self._task is not None:
            self._dispatch.remove(self._task)
            self._task.wanted = False
            self._task = None
            self._release()

    @property
    def _is_busy(self) -> bool:
        """Does a unit run that is to be compared?"""
        return self._compared in self._running

    def _keep(self, query: Query) -> None:
        sharers = (query.kind, query.tenant)
        if self._kept and sharers != self._sharers:
            if self._port.now < self._since + self._every:
                return  # others of the same may yet come
            self._release()
        if not self._kept:
            self._sharers, self._since = sharers, self._port.now
        self._port.hold(query.id)
        self._kept.append(query.id)

    def _queue(self, role: str, query: Query) -> None:
        subject = query.id if role in BACKUPS else next(self._ids)
        task = Task(role, subject, query.kind, preemptible=True, alone=True, comparing=True)
        self._task = task
        self._dispatch.add(task)

    def _release(self) -> None:
        for query in self._kept:
            self._port.release(query)
        self._kept.clear()

    def _turn(self) -> None:
        """Another stand-in is next."""
        role = next(iter(self._sizes))
        self._release()
        self._sizes[role] = self._sizes.pop(role)


def _sizes(stand_ins: StandIns) -> dict[str, int]:
    sizes = dict.fromkeys(stand_ins.backups, 1)
    code = stand_ins.code
    if code is not None and rows_needed(code)[:1] == [1]:
        sizes[parity_role(0)] = code.k
    return sizes
