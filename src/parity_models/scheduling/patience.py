"""How long clients wait before they give up, learned from those that do.

A deadline says how long a client may wait, not that it will. If many give up sooner, a queue as
long as the deadline allows is full of queries that are abandoned just as they run: nearly no work
is of use to anybody. It shows in that most queries are given up. Only then are all clients expected
to give up: otherwise a few would decide how long all others may wait. For the same reason each
tenant's clients are judged apart.
"""

from collections import OrderedDict
from collections.abc import Hashable
from math import inf

from parity_models.scheduling.recent import RecentDurations

SHARE = 0.5
"""If more than this share of queries is given up rather than answered, all clients are expected to
give up."""

NEWEST = 0.01
"""The weight of the newest query in that share."""

EARLY = 0.1
"""The quantile of waits until a client gave up that is expected of all clients."""

LEAST = 0.02
"""Clients that end before this many seconds have not waited too long: they have another reason, as
those of a benchmark that end together.
"""

WAY = 0.002
"""Seconds for the way to the client and back: an answer must be ready this much before its client
is expected to go. By simulation, where clients wait for 33 ms, runs take 20 ms, and the way 1 ms:
with this, 1 to 2 % of capacity more are answered in time.
"""

REMEMBERED = 30.0
"""Seconds for which clients are still expected to give up after more than SHARE last did."""

MAX_TENANTS = 1000
"""The most tenants whose clients are known to give up: those that last did."""


class Patience:
    """Learns from the queries that are answered or given up. Times in seconds."""

    def __init__(self) -> None:
        self._given_up = RecentDurations(window=100, every=5)
        self._share = 0.0
        self._until = -inf

    def given_up(self, now: float, waited: float, takes: float) -> None:
        """A client has given a query up after it `waited`. An answer `takes` so long when no query
        waits; who gives up before that is not counted."""
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
