"""Adaptive parity: coded resilience that needs no tuning.

Three questions are answered from what the scheduler sees, none from configuration:

    When is parity work worth sending? At once, as long as that leaves enough instances idle for
    the queries about to arrive: the square root of the originals under way, the classic safety
    margin of a many-server queue (Halfin and Whitt, Operations Research 1981). Otherwise only
    when a member of the group is late, and then with priority.

    What is late? A query that has taken longer than the live 95th percentile of latencies.

    What if original and parity are both late? A while after (half a median latency), the query
    itself is sent once more: a hedge of last resort, for the few queries that need it and within
    a budget (Dean, Barroso, CACM 2013).

Recently slow instances take last (dispatch.LatencyAware). Under overload no instance is idle
and hardly any parity work starts: originals are not delayed.
"""

from __future__ import annotations

from functools import partial
from math import ceil, sqrt
from typing import TYPE_CHECKING

from parity_models.scheduling.dispatch import Dispatch, LatencyAware
from parity_models.scheduling.policies.budget import Budget
from parity_models.scheduling.policies.parity import Erasures, Parity, Pool
from parity_models.scheduling.recent import RecentDurations
from parity_models.scheduling.work import Query

if TYPE_CHECKING:
    from parity_models.scheduling.scheduler import Scheduler

LATE = 0.95
"""The quantile of latencies beyond which a query is late."""

HEDGE_AFTER = 0.5
"""How long after a query is late it is sent once more, in median latencies."""

GROUP_WAIT = 0.25
"""How long a query waits for its group to fill, in median latencies."""


class AdaptiveParity(Parity):
    """The parity policy in a shared pool that watches load and latencies; see above.

    `hedge_budget` is how many copies a query are sent at most, on average.
    """

    def __init__(self, code: Erasures, *, hedge_budget: float = 0.05) -> None:
        super().__init__(code, pool=Pool.SHARED, max_group_wait=None)
        self._latencies = RecentDurations()
        self._budget = Budget(hedge_budget)

    def dispatch(self) -> Dispatch:
        return LatencyAware()

    def arrived(self, scheduler: Scheduler, query: Query) -> None:
        self._budget.earn()
        scheduler.keep_idle(ceil(sqrt(scheduler.pending)))
        super().arrived(scheduler, query)
        late = self._latencies.quantile(LATE)
        if late is not None:
            at = scheduler.now + late
            query.alarm = scheduler.set_timer(at, partial(self._is_late, scheduler, query))

    def resolved(self, scheduler: Scheduler, query: Query) -> None:
        self._latencies.add(scheduler.now - query.arrived)
        median = self._latencies.quantile(0.5)
        if median is not None:
            self._max_group_wait = GROUP_WAIT * median
        super().resolved(scheduler, query)

    def _is_late(self, scheduler: Scheduler, query: Query) -> None:
        for task in self._group_of(query).tasks:
            scheduler.hurry(task)
        median = self._latencies.quantile(0.5) or 0.0
        at = scheduler.now + HEDGE_AFTER * median
        query.alarm = scheduler.set_timer(at, partial(self._hedge, scheduler, query))

    def _hedge(self, scheduler: Scheduler, query: Query) -> None:
        if scheduler.is_placed(query.original) and self._budget.spend():
            scheduler.copy(query)
