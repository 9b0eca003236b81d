"""Compare stand-ins with the model in the background, so their accuracy is always known.

Most queries are answered before the output of their stand-in is here, and its unit is cancelled.
One in `compare_one_in` of these units finishes, and its outputs are compared with the model's
predictions; while the gate of their source is closed, all that can, so that it opens again soon.

Where nothing is late, no stand-in is asked. So at most once in `compare_every` seconds, a query
that the deployed model has just answered runs on a stand-in as well, only to be compared. The
stand-ins take turns; those of which no instance is up are passed over. For a parity model that
takes as many answered queries as are in a group, of one kind and tenant.

It costs little: one unit at a time is compared. An answered query runs only if an instance is idle
at once and no query waits; it is never tried again, and nothing is kept of it once it runs.
"""

from collections.abc import Hashable
from itertools import count
from math import inf

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
from parity_models.scheduling.policies.erasures import StandIns, rows_needed
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query, Task, Unit


class BackgroundComparison:
    """Chooses what is compared; see above. Times in seconds."""

    def __init__(self, port: Port, stand_ins: StandIns) -> None:
        self._port = port
        self._every = port.config.compare_every
        self.closed: set[Source] = set()
        """The sources whose gate is closed."""
        self._not_needed = 0
        self._compared: int | None = None
        """The unit that is compared, or was last."""
        self._sizes = dict.fromkeys(stand_ins.backups, 1)
        """How many queries a task of each role takes; the next role first."""
        code = stand_ins.code
        if code is not None and rows_needed(code)[:1] == [1]:
            self._sizes[parity_role(0)] = code.k
        self.due = 0.0 if self._every > 0 and self._sizes else inf
        """When an answered query is to be compared next."""
        self._first = True
        self._kept: list[int] = []
        """Answered queries that wait for as many others as are in a group."""
        self._sharers: tuple[Hashable, Hashable] = (None, None)
        self._since = 0.0
        self.task: Task | None = None
        """What is queued, only to be compared."""
        self._ids = count(-1, -1)  # those of policies are above 0

    def takes(self, unit: Unit) -> bool:
        """Return whether a unit that is not needed any more finishes, to be compared.

        If so, an answered query that has not started is given up for it.
        """
        if unit.role == DEPLOYED:
            return False
        self._not_needed += 1
        is_due = self._not_needed % self._port.config.compare_one_in == 0
        if self._is_busy or not (is_due or source_of(unit.role) in self.closed):
            return False
        self._compared = unit.id
        self.give_up()
        return True

    def answered(self, query: Query) -> None:
        """The deployed model's prediction for this query is here, and a comparison is due."""
        port, now = self._port, self._port.now
        if self._first:
            self._first, self.due = False, now + self._every
            return
        if self.task is not None or self._is_busy:
            return
        if query.exact or query.exact_only or query.crashes:
            return
        role = next(iter(self._sizes))
        if not port.up(role):
            self._turn()
        elif port.dispatch.idle_for(role) and not port.queued(DEPLOYED):
            self._keep(query)
            if len(self._kept) == self._sizes[role]:
                subject = query.id if role in BACKUPS else next(self._ids)
                self.task = Task(role, subject, query.kind, preemptible=True, alone=True)
                self.task.comparing = True
                port.dispatch.add(self.task)

    def starts(self, unit: Unit, run: Run) -> list[Encode | Run | Compare | ForgetGroup]:
        """The task that was queued is about to run as `run`. Return what is to be done, in order.

        The predictions are taken at `Compare`, so that nothing is kept from then on.
        """
        (task,) = unit.tasks
        task.wanted = False  # it is not tried again
        self._compared = unit.id
        actions: list[Encode | Run | Compare | ForgetGroup] = [run, Compare(unit.instance, unit.id)]
        if task.role not in BACKUPS:
            encode = Encode(task.subject, tuple(self._kept), 0.0)
            actions = [encode, *actions, ForgetGroup(task.subject)]
        self.task = None
        self.due = self._port.now + self._every
        self._turn()
        return actions

    def give_up(self) -> None:
        """Give up what is queued, and has not started at once."""
        if self.task is not None:
            self._port.dispatch.remove(self.task)
            self.task.wanted = False
            self.task = None
            self._release()

    @property
    def _is_busy(self) -> bool:
        """Whether a unit runs that is compared."""
        return self._compared in self._port.units

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

    def _release(self) -> None:
        for query in self._kept:
            self._port.release(query)
        self._kept.clear()

    def _turn(self) -> None:
        """Make another stand-in the next."""
        self._release()
        role = next(iter(self._sizes))
        self._sizes[role] = self._sizes.pop(role)
