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

from parity_models.scheduling.actions import DEPLOYED
from parity_models.scheduling.dispatch import Dispatch, LatencyAware
from parity_models.scheduling.policies.coded import CodedPolicy, Pool
from parity_models.scheduling.policies.erasures import Erasures
from parity_models.scheduling.policies.groups import CodingGroups
from parity_models.scheduling.policies.interference import Interference
from parity_models.scheduling.policies.late_copies import LateCopies
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Query, Task, Unit

GROUP_WAIT = 0.15
"""How long a query waits for its group to fill, in median run times."""

PARITY_TAKES = 1.25
"""How long after a query its parity query's output is there, in median run times."""

NEEDED = 0.001
"""The share of units that must take longer than parity for it to be worth sending."""


class AdaptiveParity(CodedPolicy):
    """Coding groups in a shared pool, and late copies, as load and run times tell; see above.

    `hedge_budget` is how many copies a query are sent at most, on average, beside those that
    start on spare capacity. `run_times` and `interference` are what is known to begin with; by
    default nothing.
    """

    name = "adaptive-parity"

    def __init__(
        self,
        code: Erasures,
        options: CodedPolicy.Options | None = None,
        *,
        hedge_budget: float = 0.05,
        run_times: RunTimes | None = None,
        interference: Interference | None = None,
    ) -> None:
        groups = CodingGroups(code, max_wait=None, may_send=self._may_send)
        super().__init__(code, groups, Pool.SHARED, run_times)
        self.interference = Interference() if interference is None else interference
        self.copies = LateCopies(hedge_budget, groups, self.interference)
        self._needed = True
        self._learn()

    def dispatch(self) -> Dispatch:
        return LatencyAware()

    def arrived(self, port: Port, query: Query) -> None:
        if port.queued(DEPLOYED) <= round(self.margin.fluctuation(port.pending)):
            self.copies.earn()
        super().arrived(port, query)
        if port.is_placed(query.original):
            self.copies.watch(port, query)

    def starts(self, port: Port, task: Task) -> None:
        query = port.pending_query(task.subject)
        if query is not None and task is not query.original:
            self.interference.starts(task)
        elif query is not None:
            self.copies.watch(port, query)
        super().starts(port, task)

    def redundancy_starts(self, port: Port, task: Task) -> None:
        self.interference.starts(task)
        super().redundancy_starts(port, task)

    def unit_ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        if unit.work == DEPLOYED:
            self.margin.ran(unit, port.max_batch)
            if self.run_times.add(port.now - unit.started, finished=finished):
                self._learn()
        self.interference.ended(port.now, unit, finished=finished)

    def _learn(self) -> None:
        median = self.run_times.median
        if median is None:
            return
        self.copies.learn(self.run_times)
        self._needed = self.run_times.share_longer(PARITY_TAKES * median) >= NEEDED
        self.groups.max_wait = GROUP_WAIT * median if self._needed else None

    def _may_send(self) -> bool:
        """Are the parity queries of a group that is full worth sending, and spare?"""
        return self._needed and self.interference.allows()
