"""Tied requests: a query waits at two instances, and the first to start it cancels the other.

Dean and Barroso, The tail at scale, CACM 2013, "Tied requests": what makes most queries late is the
queue that they wait in, and nobody knows beforehand which queue moves on; so a query stands in two
and is executed once. Two instances that are idle would both start it before they hear of each
other; for that the paper sends the second copy a little later. Here the scheduler cancels a copy in
the same instant in which the other starts, so that the delay is a choice: a longer one places the
second copy when more is known, and fewer of them.

A query that has started is not helped: hedging is for that.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from parity_models.options import SECONDS, Option
from parity_models.scheduling.dispatch import Dispatch, Prequal
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query, Task


class Tied(Policy):
    """Two copies of a query are queued; when one starts, the other is cancelled.

    It makes sense where each instance has a queue; by default dispatch.Prequal chooses both, the
    best of the rules that have (lab/notes/latency.md). In a queue that all share, both would
    wait for the same instance.
    """

    name = "tied"

    @dataclass(frozen=True, kw_only=True)
    class Options(Policy.Options):
        """What can be set."""

        tied_delay: Annotated[
            float,
            Option(
                "Time after which a query that waits gets its second place.",
                unit=SECONDS,
                at_least=0,
            ),
        ] = 0.0

    def __init__(self, options: Options | None = None) -> None:
        self._delay = (options or self.Options()).tied_delay

    def dispatch(self) -> Dispatch:
        return Prequal()

    def arrived(self, port: Port, query: Query) -> None:
        if self._delay:
            port.set_alarm(query, port.now + self._delay, partial(self._tie, port, query))
        else:
            self._tie(port, query)

    def starts(self, port: Port, task: Task) -> None:
        query = port.pending_query(task.subject)
        for other in query.tasks if query else ():
            if other.unit is None:
                port.drop(other)

    def _tie(self, port: Port, query: Query) -> None:
        if not query.kills and not any(task.unit for task in query.tasks):
            port.copy(query, last=True)
