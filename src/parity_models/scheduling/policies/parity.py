"""Coded resilience: every k queries are accompanied by r parity queries.

Kosaian et al., SOSP 2019, section 3; groups.py has the life of a coding group.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import sqrt

from parity_models.options import option
from parity_models.roles import DEPLOYED
from parity_models.scheduling.policies.groups import CodingGroups
from parity_models.scheduling.policies.policy import Erasures, Policy, Requires, StandIns
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Query, Unit

DELAY = 1.02
"""The longest that the median answer may take, in median run times."""

STEP = 0.005
"""The change of the share for each answer."""

NEWEST = 0.02
"""The weight of the newest unit in the share of units that are full."""


class Margin:
    """Learn how many instances to leave idle; `run_times` are the originals'.

    The number of queries in flight fluctuates by about its square root. With that many instances
    idle on average, few queries wait (Halfin and Whitt, Heavy-traffic limits for queues with many
    exponential servers, Operations Research 1981). The share of this margin that is left idle is
    learned: it falls while the median query is answered about as soon as the median unit has run,
    and rises when too many queries wait or get slow instances. Where batches are not full, an
    arriving query joins a batch and needs no idle instance. So the margin shrinks with the square
    of the share of batches that are full.
    """

    def __init__(self, run_times: RunTimes) -> None:
        self._run_times = run_times
        self._share = 0.0
        self._full = 1.0

    def ran(self, unit: Unit, max_batch: int) -> None:
        """Record a unit of originals; a full one holds `max_batch` tasks."""
        self._full += NEWEST * ((len(unit.tasks) == max_batch) - self._full)

    def answered(self, latency: float) -> None:
        """Record that a query was answered after `latency` seconds."""
        median = self._run_times.median
        if median is not None:
            step = STEP if latency > DELAY * median else -STEP
            self._share = min(1.0, max(0.0, self._share + step))

    def kept(self, pending: int) -> int:
        """Return how many instances to leave idle while `pending` queries are in flight."""
        return round(self._share * self._full * (self._full * sqrt(pending)))


class Pool(StrEnum):
    """The instances that run parity models."""

    DEDICATED = "dedicated"
    """On instances of their own, as in the paper."""
    SHARED = "shared"
    """On every instance, at lower priority than originals: spare capacity only (Margin)."""


class Parity(CodingGroups):
    """Send r parity queries with every k queries; `code` tells k, r and what is decodable."""

    name = "parity"
    requires = Requires.PARITY

    @dataclass(frozen=True, kw_only=True)
    class Options(Policy.Options):
        """The policy's options."""

        pool: Pool = option(
            Pool.SHARED,
            "Where parity models run: on every instance, at lower priority than originals, or "
            "on instances of their own.",
        )
        max_group_wait: float | None = option(
            0.01,
            "Time after which a coding group that is not full is completed with recently "
            "answered queries.",
            unit="ms",
            ge=0,
        )

    def __init__(self, code: Erasures, options: Options | None = None) -> None:
        options = options or self.Options()
        super().__init__(code, max_wait=options.max_group_wait)
        self.asks = StandIns(code)
        self._pool = options.pool
        self._run_times = RunTimes()
        self._margin = Margin(self._run_times)

    def roles(self, instances: int, extra: int) -> list[frozenset[str]]:
        parity, deployed = frozenset(self.parity_roles), frozenset({DEPLOYED})
        if self._pool is Pool.SHARED:
            return [deployed | parity] * (instances + extra)
        return [deployed] * instances + [parity] * extra

    def arrived(self, port: Port, query: Query) -> None:
        port.keep_idle(self._margin.kept(len(port.queries)))
        super().arrived(port, query)

    def resolved(self, port: Port, query: Query) -> None:
        self._margin.answered(port.now - query.arrived)
        super().resolved(port, query)

    def unit_ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        if unit.role == DEPLOYED:
            self._margin.ran(unit, port.max_batch)
            self._run_times.add(port.now - unit.started, finished=finished)
