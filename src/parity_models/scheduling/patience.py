"""How long clients wait before they give up, as those that do tell.

A deadline says how long a client may wait, not that it will. Where many give up sooner, a queue as
long as the deadline allows is full of queries that are abandoned just as they run, so that next to
nothing is of use to anybody. Then most of the queries that end are given up. While most are not,
those who give up are not taken for all: a few would decide how long all others may wait. For the
same reason what a tenant's clients do says nothing of those of others.
"""

from collections import OrderedDict
from collections.abc import Hashable
from math import inf

from parity_models.scheduling.recent import RecentDurations

SHARE = 0.5
"""Of the queries that are answered or given up: if more are given up, all are expected to be."""

NEWEST = 0.01
"""The weight of the newest query in that share."""

EARLY = 0.1
"""This share of those that are given up are given up sooner than is expected of all."""

LEAST = 0.02
"""Seconds before which nobody gives up for waiting too long: clients that end sooner, as those of a
benchmark do, many at once, have another reason.
"""

WAY = 0.002
"""Seconds before that from which on an answer would come too late: it has a way to its client, and
that its client has gone is heard of as much later. By simulation, where clients wait for 33 ms,
runs take 20 ms, and the way 1 ms: 1 to 2 % of capacity more are answered in time than without this.
"""

REMEMBERED = 30.0
"""Seconds for which it is expected, after more than SHARE were last given up."""

MAX_TENANTS = 1000
"""Of so many tenants it is known that their clients give up: those that last did."""


class Patience:
    """Learns from the queries that are answered or given up. Times in seconds."""

    def __init__(self) -> None:
        self._given_up = RecentDurations(window=100, every=5)
        self._share = 0.0
        self._until = -inf

    def given_up(self, now: float, waited: float, takes: float) -> None:
        """A client has given a query up, for which it had waited so long; it `takes` so long to
        answer one where none waits, for which nobody can be too impatient."""
        if waited < max(LEAST, takes):
            return
        self._given_up.add(waited)
        self._share += NEWEST * (1 - self._share)
        if self._share > SHARE:
            self._until = now + REMEMBERED

    def answered(self) -> None:
        """A query has been answered."""
        self._share -= NEWEST * self._share

    def limit(self, now: float) -> float:
        """How long a query may take, for its client to be there still when the answer comes."""
        if now > self._until:
            return inf
        early = self._given_up.quantile(EARLY)
        return inf if early is None else early - WAY


class PatienceByTenant:
    """Learns the patience of each tenant's clients from its own queries. Times in seconds."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, Patience] = OrderedDict()

    def __len__(self) -> int:
        """Of how many tenants something is known."""
        return len(self._known)

    def given_up(self, now: float, waited: float, takes: float, tenant: Hashable) -> None:
        """As of `Patience`, by a client of this tenant."""
        if tenant not in self._known:
            self._known[tenant] = Patience()
            if len(self._known) > MAX_TENANTS:
                self._known.popitem(last=False)
        self._known.move_to_end(tenant)
        self._known[tenant].given_up(now, waited, takes)

    def answered(self, tenant: Hashable) -> None:
        """A query of this tenant has been answered."""
        known = self._known.get(tenant)
        if known is not None:
            known.answered()

    def limit(self, now: float, tenant: Hashable) -> float:
        """How long a query of this tenant may take, for its client to be there still."""
        known = self._known.get(tenant)
        return inf if known is None else known.limit(now)
