"""Hedged requests: a query that takes long is sent once more (Dean, Barroso, CACM 2013).

The Tail at Scale sends the copy after the 95th percentile of latency, so that only about 5 % of
queries are copied. Here the delay is fixed or follows a live quantile, and a budget bounds the
copies whatever happens.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from parity_models.scheduling.policies.budget import Budget
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.recent import RecentDurations
from parity_models.scheduling.timers import LEAST_DELAY
from parity_models.scheduling.work import Query

if TYPE_CHECKING:
    from parity_models.scheduling.scheduler import Scheduler


class Hedging(Policy):
    """One copy of a query that is unanswered after a delay.

    The delay is `delay` seconds, or, where that is None, the live `quantile` of latencies. At
    most `budget` copies a query are sent on average. A query that still waits in a queue common
    to all instances is not copied (the copy would wait there too) but looked at again later.
    """

    def __init__(
        self, *, delay: float | None = None, quantile: float = 0.95, budget: float = 0.1
    ) -> None:
        if delay is not None and delay <= 0:
            raise ValueError(
                f"the delay must be above 0 s, got {delay}; to copy at once, replicate"
            )
        self._delay = delay
        if not 0 < quantile < 1:
            raise ValueError(f"the quantile must lie between 0 and 1, got {quantile}")
        self._quantile = quantile
        self._latencies = RecentDurations()
        self._budget = Budget(budget)

    def arrived(self, scheduler: Scheduler, query: Query) -> None:
        self._budget.earn()
        self._watch(scheduler, query)

    def resolved(self, scheduler: Scheduler, query: Query) -> None:
        self._latencies.add(scheduler.now - query.arrived)

    def _watch(self, scheduler: Scheduler, query: Query) -> None:
        delay = self._delay or self._latencies.quantile(self._quantile)
        if delay is not None:
            at = scheduler.now + max(delay, LEAST_DELAY)
            query.alarm = scheduler.set_timer(
                at, partial(self._hedge, scheduler, query), (query.id,)
            )

    def _hedge(self, scheduler: Scheduler, query: Query) -> None:
        if query.kills:
            return  # it is tried alone
        if not scheduler.is_placed(query.original):
            self._watch(scheduler, query)
        elif self._budget.spend():
            scheduler.copy(query)
