"""Hedged requests: a query that takes long is sent once more (Dean, Barroso, CACM 2013).

The Tail at Scale sends the copy after the 95th percentile of latency, so that only about 5 % of
queries are copied. Here the delay is fixed or follows a live quantile, and a budget bounds the
copies whatever happens.
"""

from functools import partial

from parity_models.scheduling.policies.budget import Budget
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.port import Port
from parity_models.scheduling.recent import RecentDurations
from parity_models.scheduling.timers import LEAST_DELAY
from parity_models.scheduling.work import Query


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

    def arrived(self, port: Port, query: Query) -> None:
        self._budget.earn()
        self._watch(port, query)

    def resolved(self, port: Port, query: Query) -> None:
        self._latencies.add(port.now - query.arrived)

    def _watch(self, port: Port, query: Query) -> None:
        delay = self._delay or self._latencies.quantile(self._quantile)
        if delay is not None:
            at = port.now + max(delay, LEAST_DELAY)
            port.set_alarm(query, at, partial(self._hedge, port, query))

    def _hedge(self, port: Port, query: Query) -> None:
        if query.kills:
            return  # it is tried alone
        if not port.is_placed(query.original):
            self._watch(port, query)
        elif self._budget.spend():
            port.copy(query)
