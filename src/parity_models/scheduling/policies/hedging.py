"""Hedged requests: a query that takes long is sent once more (Dean, Barroso, CACM 2013).

The Tail at Scale sends the copy after the 95th percentile of latency, so that only about 5 % of
queries are copied. Here the delay is fixed or follows a live quantile, and a budget always bounds
the copies. Recently slow instances come last (dispatch.py): a copy on a slow instance is useless.
"""

from dataclasses import dataclass
from functools import partial

from parity_models.errors import UserError
from parity_models.options import option
from parity_models.scheduling.dispatch import LATENCY_AWARE
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.port import Port
from parity_models.scheduling.race import Budget
from parity_models.scheduling.run_times import RecentDurations
from parity_models.scheduling.work import Query


class Hedging(Policy):
    """Copy a query that is unanswered after a delay.

    The delay is fixed, or the live quantile of latencies. A query that still waits in a queue
    common to all instances is not copied (the copy would wait there too) but looked at again later.
    """

    name = "hedging"
    rule = LATENCY_AWARE

    @dataclass(frozen=True, kw_only=True)
    class Options(Policy.Options):
        """The policy's options."""

        hedge_delay: float | None = option(
            None,
            "Time after which a query is sent once more; by default the live hedge-quantile of "
            "latencies.",
            unit="ms",
            gt=0,
        )
        hedge_quantile: float = option(
            0.95, "The quantile of latencies after which a query is sent once more.", gt=0, lt=1
        )
        hedge_budget: float = option(0.1, "Maximum copies per query, on average.", gt=0)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.hedge_delay is not None and self.hedge_quantile != type(self).hedge_quantile:
                raise UserError("give hedge-delay or hedge-quantile, not both")

    def __init__(self, options: Options | None = None) -> None:
        options = options or self.Options()
        self._delay = options.hedge_delay
        self._quantile = options.hedge_quantile
        self._latencies = RecentDurations()
        self._budget = Budget(options.hedge_budget)

    def arrived(self, port: Port, query: Query) -> None:
        self._budget.earn()
        self._watch(port, query)

    def resolved(self, port: Port, query: Query) -> None:
        self._latencies.add(port.now - query.arrived)

    def _watch(self, port: Port, query: Query, times: RecentDurations | None = None) -> None:
        """Hedge after the delay; the live one is a quantile of `times`, by default latencies."""
        delay = self._delay or (times or self._latencies).quantile(self._quantile)
        if delay is not None:
            port.set_alarm(query, port.now + delay, partial(self._hedge, port, query))

    def _hedge(self, port: Port, query: Query) -> None:
        if query.crashes:
            return  # it is tried alone
        if query.original.instance is None:
            self._watch(port, query)
        elif self._budget.spend():
            port.copy(query)
