"""Adaptive parity: coded resilience that needs no tuning.

Five questions are answered from what the scheduler sees, none from configuration:

    Is redundancy worth anything? Only if some of the recent units ran for longer than a parity
    query would take. If all took about the same, no parity is sent.

    Is there capacity for it? Parity queries are sent when their group is full, and start as long
    as that leaves instances idle for the queries about to arrive: none while the median query is
    answered as soon as the median unit has run, up to the root of the queries under way when it
    is not (margin.py).

    Is it spare? As long as originals take as long beside redundant work as without any. Where
    instances share cores they do not, and fewer parity queries are sent (interference.py).

    Which queries are slow? One whose original, and parity if that runs, have run for longer than
    three quarters of all units do is sent once more, on spare capacity alike. Past 95 % it is
    late: its copy takes its turn among originals, within a budget (Dean and Barroso, CACM 2013)
    that does not grow while more originals and copies wait than the queries under way fluctuate by.

    Is a copy likely to help? It takes a median run time. As long as fewer than three in ten of
    the recent units took so long still from that age on, it is not sent.

Recently slow instances take last (dispatch.LatencyAware).
"""

from functools import partial
from math import inf

from parity_models.scheduling.actions import DEPLOYED
from parity_models.scheduling.dispatch import Dispatch, LatencyAware
from parity_models.scheduling.policies.budget import Budget
from parity_models.scheduling.policies.interference import Interference
from parity_models.scheduling.policies.margin import Margin
from parity_models.scheduling.policies.parity import CodingGroup, Erasures, Parity, Pool
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.timers import LEAST_DELAY
from parity_models.scheduling.work import Query, Task, Unit

SLOW, LATE = 0.25, 0.05
"""The shares of originals that run for so long that they are slow, and late."""

CHANCE = 0.3
"""With which chance, at least, a copy sent now must be there before the original."""

GROUP_WAIT = 0.15
"""How long a query waits for its group to fill, in median run times."""

PARITY_TAKES = 1.25
"""How long after a query its parity query's output is there, in median run times."""

NEEDED = 0.001
"""The share of units that must take longer than parity for it to be worth sending."""


class AdaptiveParity(Parity):
    """The parity policy in a shared pool that watches load and run times; see above.

    `hedge_budget` is how many copies a query are sent at most, on average, beside those that
    start on spare capacity. `run_times` and `interference` are what is known to begin with; by
    default nothing.
    """

    def __init__(
        self,
        code: Erasures,
        *,
        hedge_budget: float = 0.05,
        run_times: RunTimes | None = None,
        interference: Interference | None = None,
    ) -> None:
        super().__init__(code, pool=Pool.SHARED, max_group_wait=None)
        self._budget = Budget(hedge_budget)
        self._run_times = RunTimes() if run_times is None else run_times
        self._margin = Margin(self._run_times)
        self._interference = Interference() if interference is None else interference
        self._needed = True
        self._slow = self._late = inf
        self._learn()

    def dispatch(self) -> Dispatch:
        return LatencyAware()

    def arrived(self, port: Port, query: Query) -> None:
        waiting = port.queued(DEPLOYED)
        if waiting <= round(self._margin.fluctuation(port.pending)):
            self._budget.earn()
        super().arrived(port, query)
        if self._slow < inf and port.is_placed(query.original):
            self._look_at(port, query, port.now + self._slow)

    def starts(self, port: Port, task: Task) -> None:
        query = port.pending_query(task.subject)
        if query is not None and task is not query.original:
            self._interference.starts(task)
        elif query is not None and self._slow < inf:
            self._look_at(port, query, port.now + self._slow)
        super().starts(port, task)

    def redundancy_starts(self, port: Port, task: Task) -> None:
        self._interference.starts(task)
        super().redundancy_starts(port, task)

    def unit_ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        super().unit_ended(port, unit, finished=finished)
        self._interference.ended(port.now, unit, finished=finished)

    def _ran(self, seconds: float, *, finished: bool) -> None:
        if self._run_times.add(seconds, finished=finished):
            self._learn()

    def _learn(self) -> None:
        run_times, median = self._run_times, self._run_times.median
        slow, late = (run_times.worth_doubling(share, CHANCE) for share in (SLOW, LATE))
        if median is None or slow is None or late is None:
            return
        self._slow, self._late = slow, late
        self._needed = run_times.share_longer(PARITY_TAKES * median) >= NEEDED
        self._max_group_wait = GROUP_WAIT * median if self._needed else None

    def _send(self, port: Port, group: CodingGroup) -> None:
        if self._needed and self._interference.allows():
            super()._send(port, group)

    def _look_at(self, port: Port, query: Query, at: float) -> None:
        at = max(at, port.now + LEAST_DELAY)
        port.set_alarm(query, at, partial(self._look, port, query))

    def _look(self, port: Port, query: Query) -> None:
        """Copy a query whose original is slow; hurry its copy once it is late."""
        if query.kills:
            return  # it is tried alone
        group = self._group_of(query)
        if not port.is_placed(query.original):
            return  # it waits in the queue, as a copy of it would, and is looked at once it runs
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
