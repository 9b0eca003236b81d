"""What policies with a code have in common: coding groups, on capacity that originals leave."""

from collections.abc import Collection
from enum import StrEnum

from parity_models.scheduling.actions import DEPLOYED, parity_role
from parity_models.scheduling.policies.erasures import Erasures, StandIns
from parity_models.scheduling.policies.groups import CodingGroups
from parity_models.scheduling.policies.margin import Margin
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Query, Task


class Pool(StrEnum):
    """Where parity models run."""

    DEDICATED = "dedicated"
    """On instances of their own, as in the paper."""
    SHARED = "shared"
    """On every instance, at lower priority than originals: spare capacity only (margin.py)."""


class CodedPolicy(Policy):
    """Queries join coding groups; instances are kept idle for originals as the margin says.

    A policy says itself, in `unit_ended`, what `run_times` and `margin` learn from originals.
    """

    needs_code = True

    def __init__(self, code: Erasures, groups: CodingGroups, pool: Pool) -> None:
        self._code = code
        self.asks = StandIns(code)
        self._pool = pool
        self.groups = groups
        self.run_times = RunTimes()
        self.margin = Margin(self.run_times)

    def roles(self, instances: int, parity_instances: int) -> list[frozenset[str]]:
        parity = frozenset(parity_role(j) for j in range(self._code.r))
        deployed = frozenset({DEPLOYED})
        if self._pool is Pool.SHARED:
            return [deployed | parity] * (instances + parity_instances)
        return [deployed] * instances + [parity] * parity_instances

    def arrived(self, port: Port, query: Query) -> None:
        port.keep_idle(self.margin.kept(len(port.queries)))
        self.groups.arrived(port, query)

    def predicted(self, port: Port, task: Task) -> None:
        self.groups.predicted(port, task)

    def starts(self, port: Port, task: Task) -> None:
        self.groups.starts(port, task)

    def redundancy_starts(self, port: Port, task: Task) -> None:
        self.groups.redundancy_starts(port, task)

    def redundancy_finished(self, port: Port, task: Task) -> None:
        self.groups.redundancy_finished(port, task)

    def carries(self, task: Task) -> Collection[int]:
        return self.groups.carries(task)

    def exposes(self, port: Port, query: Query) -> int:
        return self.groups.exposes(port, query)

    def suspected(self, port: Port, query: Query) -> None:
        self.groups.suspected(port, query)

    def urgent(self, port: Port, query: Query) -> None:
        self.groups.urgent(port, query)

    def resolved(self, port: Port, query: Query) -> None:
        self.margin.answered(port.now - query.arrived)
        self.groups.resolved(port, query)
