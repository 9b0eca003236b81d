"""Comparisons of stand-ins with the deployed model: in the background, and audits of answers.

Neither delays a query: both run where nothing else is to run, and are given up rather than tried
again.
"""

from collections.abc import Hashable
from functools import partial
from itertools import count
from random import Random

from parity_models.roles import BACKUP, DEPLOYED, parity_role
from parity_models.scheduling.actions import Action, Audit, Compare, Encode, ForgetGroup, Run
from parity_models.scheduling.policies.policy import StandIns, rows_needed
from parity_models.scheduling.port import Core
from parity_models.scheduling.work import Query, Task, Unit, due

MAX_AUDITED = 64
"""The most answers of stand-ins that wait at a time to be compared with the model's."""


MAX_WAIT = 10.0
"""Seconds in which a group to compare waits for more queries of its kind and tenant."""


class BackgroundComparison:
    """Compares stand-ins with the model in the background, so their accuracy is always known.

    Queries in time are drawn at random, before anything is known of a stand-in's output: a share
    `compare` of those for which none was asked. A drawn query runs on a stand-in as well, after the
    model has answered it. The stand-ins take turns; any without an instance that is up is skipped.
    A parity model needs a whole group of answered queries, of one kind and tenant.

    Late queries are another population. Most are answered before the output of their stand-in
    arrives, and its unit is cancelled. One in `compare_one_in` of these units may finish, and its
    outputs are compared with the model's predictions.

    It costs little: one unit at a time is compared. An answered query runs only if an instance is
    idle at once and no query waits; it is never tried again, and nothing is kept of it once it
    runs.
    """

    def __init__(self, core: Core, stand_ins: StandIns) -> None:
        self._core = core
        self._share = core.config.compare
        self._random = Random(core.config.seed)
        self._not_needed = 0
        self._compared: int | None = None
        """The unit that is compared, or was last."""
        self._group_sizes = {BACKUP: 1} if stand_ins.backup else {}
        """The number of queries in a task of each role, in the order of their turns."""
        code = stand_ins.code
        if code is not None and rows_needed(code)[:1] == [1]:
            self._group_sizes[parity_role(0)] = code.k
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
        core = self._core
        is_due = self._not_needed % core.config.compare_one_in == 0
        if self._compared in core.units or not is_due:
            return False
        self._compared = unit.id
        self.give_up()
        return True

    def answered(self, query: Query) -> None:
        """The deployed model has answered this query."""
        if not self._group_sizes or self._random.random() >= self._share:
            return
        core = self._core
        busy = self.task is not None or self._compared in core.units
        if busy or query.exact or query.crashes:
            return
        if query.backup is not None and not query.backup.preemptible:
            return  # Audits draws among these
        role = next(iter(self._group_sizes))
        shares = role == BACKUP or query.tenant is not None or core.config.share_groups
        if not (shares and core.up(role)):
            self._next_stand_in()
        elif core.dispatch.idle_for(role) and not core.queued(DEPLOYED) and core.screen(query):
            self._add_member(query)
            if len(self._members) == self._group_sizes[role]:
                subject = query.id if role == BACKUP else next(self._ids)
                self.task = Task(
                    role, subject, query.kind, preemptible=True, alone=True, comparing=True
                )
                core.dispatch.add(self.task)

    def starts(self, unit: Unit, run: Run) -> list[Action]:
        """The queued task is about to run as `run`. Return the actions to carry out, in order.

        The predictions are taken at `Compare`, so that nothing is kept from then on.
        """
        (task,) = unit.tasks
        task.wanted = False  # it is not tried again
        self._compared = unit.id
        actions: list[Action] = [run, Compare(unit.instance, unit.id, late=False)]
        if task.role != BACKUP:
            encode = Encode(task.subject, tuple(self._members), 0.0)
            actions = [encode, *actions, ForgetGroup(task.subject)]
        self.task = None
        self._next_stand_in()
        return actions

    def give_up(self) -> None:
        """Give up the queued task of a comparison, which did not start at once."""
        if self.task is not None:
            self._core.dispatch.remove(self.task)
            self.task.wanted = False
            self.task = None
            self._release()

    def _add_member(self, query: Query) -> None:
        sharers = (query.kind, query.tenant)
        if self._members and sharers != self._sharers:
            if self._core.now < self._waiting_since + MAX_WAIT:
                return  # more of the kept kind and tenant may come
            self._release()
        if not self._members:
            self._sharers, self._waiting_since = sharers, self._core.now
        self._core.hold(query.id)
        self._members.append(query.id)

    def _release(self) -> None:
        for query in self._members:
            self._core.release(query)
        self._members.clear()

    def _next_stand_in(self) -> None:
        """Let the next stand-in take its turn."""
        self._release()
        role = next(iter(self._group_sizes))
        self._group_sizes[role] = self._group_sizes.pop(role)


class Audits:
    """Compare some outputs of stand-ins that were asked for a query with the model's.

    One in `compare_one_in` is drawn at random, and more of the first answers and of those since a
    gate has turned. If the stand-in has answered, the model runs on: if the query's original runs,
    it goes on; if it is queued, it becomes preemptible, and is given up at the query's deadline.
    The driver holds the query's tensors meanwhile.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._random = Random(core.config.seed)
        self._audited: dict[Task, bool] = {}
        """The model's tasks that run only to be compared; True: for a late query."""
        self.begin()

    def begin(self) -> None:
        """Draw more for a while."""
        self._drawn = 0

    def predicted(self, query: Query, backup: Task) -> None:
        """The model answers this query; the output of its `backup` may be known as well."""
        if not backup.has_output or query.crashes:
            return
        if self._random.random() * self._core.config.compare_one_in < 1:
            self._core.act(Audit(query.id, late=not backup.first, answered=False))

    def answered(self, query: Query) -> None:
        """A stand-in answers this query."""
        core, original = self._core, query.original
        if not due(self._drawn, core.config.compare_one_in, self._random):
            return
        self._drawn += 1
        if query.crashes or not original.wanted or len(self._audited) >= MAX_AUDITED:
            return
        original.audited = True
        self._audited[original] = query.backup is None or not query.backup.first
        core.hold(query.id)
        query.tasks.remove(original)
        if original.unit is None:  # it needs not, and may not, delay others
            core.dispatch.remove(original)
            original.preemptible = True
            core.dispatch.add(original)
            core.set_timer(query.due, partial(self._give_up, original))

    def finished(self, task: Task, *, usable: bool) -> None:
        """The model's prediction has arrived for an audited task."""
        if usable:
            self._core.act(Audit(task.subject, late=self._audited[task], answered=True))
        self.end(task)

    def end(self, task: Task) -> None:
        """An audited task has ended."""
        task.wanted = False
        del self._audited[task]
        self._core.release(task.subject)

    def _give_up(self, task: Task) -> None:
        if task.queue is not None:
            self._core.dispatch.remove(task)
            self.end(task)
