"""Copies of queries that are slow, on spare capacity, and of late ones within a budget.

A query whose original, and parity if that runs, have run for longer than three quarters of all
units do is *slow*: it is sent once more, on spare capacity. Past 95 % it is *late*: its copy takes
its turn among originals, within a budget of copies a query (Dean and Barroso, CACM 2013). A copy
takes a median run time; where it is not likely to be there before the original, it is not sent.
"""

from functools import partial
from math import inf

from parity_models.scheduling.policies.budget import Budget
from parity_models.scheduling.policies.groups import CodingGroups
from parity_models.scheduling.policies.interference import Interference
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.timers import LEAST_DELAY
from parity_models.scheduling.work import Query

SLOW, LATE = 0.25, 0.05
"""The shares of originals that run for so long that they are slow, and late."""

CHANCE = 0.3
"""With which chance, at least, a copy sent now must be there before the original."""


class LateCopies:
    """Looks at queries that run, and copies those that are slow or late. Times in seconds.

    `budget` is how many copies of late queries are sent a query, on average, at most. A query's
    parity queries are in `groups`; `interference` says whether spare work may run.
    """

    def __init__(self, budget: float, groups: CodingGroups, interference: Interference) -> None:
        self._budget = Budget(budget)
        self._groups = groups
        self._interference = interference
        self._slow = self._late = inf

    def learn(self, run_times: RunTimes) -> None:
        """The estimates of run times are new."""
        slow, late = (run_times.worth_doubling(share, CHANCE) for share in (SLOW, LATE))
        if slow is not None and late is not None:
            self._slow, self._late = slow, late

    def earn(self) -> None:
        """A query has arrived for which the budget is to grow."""
        self._budget.earn()

    def watch(self, port: Port, query: Query) -> None:
        """Look at the query once it is slow, if it starts now."""
        if self._slow < inf:
            self._look_at(port, query, port.now + self._slow)

    def _look_at(self, port: Port, query: Query, at: float) -> None:
        at = max(at, port.now + LEAST_DELAY)
        port.set_alarm(query, at, partial(self._look, port, query))

    def _look(self, port: Port, query: Query) -> None:
        """Copy a query whose original is slow; hurry its copy once it is late."""
        if query.kills:
            return  # it is tried alone
        if not port.is_placed(query.original):
            return  # it waits in the queue, as a copy of it would, and is looked at once it runs
        group = self._groups.of(query)
        units = [task.unit for task in (query.original, *(group.tasks if group else ()))]
        began = max((unit.started for unit in units if unit), default=query.arrived)
        if port.now < began + self._slow:
            self._look_at(port, query, began + self._slow)
            return
        if len(query.tasks) == 1 and self._interference.allows():
            port.copy(query, spare=True)
        if port.now < began + self._late:
            self._look_at(port, query, began + self._late)
        elif len(query.tasks) == 1 or (query.tasks[1].wanted and query.tasks[1].unit is None):
            self._hurry(port, query)

    def _hurry(self, port: Port, query: Query) -> None:
        """Have a copy of a late query take its turn among originals, as far as there is budget."""
        if self._budget.spend():
            if len(query.tasks) == 1:
                port.copy(query, spare=True)
            port.hurry(query.tasks[1])
        elif len(query.tasks) == 1:
            self._look_at(port, query, port.now + self._slow)
