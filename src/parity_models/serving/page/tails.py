"""Latencies with stand-ins and without: what the tail is, and what it would have been.

A query that a stand-in answered would have waited for the model's own answer. Nobody waits for that
any more, so its unit is cancelled. But the scheduler spares one in ONE_IN of these units: the time
at which it ends counts for those that were cancelled as well. Where such a unit is lost, or none
was started yet, only a lower bound is known: the time until then.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from parity_models.serving.page.frames import Tail
from parity_models.serving.page.latencies import MINUTES, Latencies

ONE_IN = 4
"""One in this many units whose queries were all answered by stand-ins runs on to its end: enough to
see a tail, and little work for the instances."""

MAX_OWED = 10_000
"""Queries whose own answers are waited for at a time; the oldest gives way."""


@dataclass(slots=True)
class _Owed:
    """When a query arrived, when a stand-in answered it, and how many queries it stands for."""

    arrived: float
    answered: float
    weight: int = 1


class Tails:
    """Times in seconds."""

    def __init__(self) -> None:
        self._answered = Latencies()
        self._alone = Latencies()
        self._owed: dict[int, _Owed] = {}
        """The queries that a stand-in answered, and whose own answers are still to come."""
        self._settled: deque[tuple[float, bool]] = deque(maxlen=MAX_OWED)
        """When the latency that a query would have had without stand-ins became known, and whether
        it is exact or a lower bound."""

    def answered(self, now: float, arrived: float) -> None:
        """A query has an answer that would have come at the same time without stand-ins."""
        self._answered.add(now, now - arrived)
        self._alone.add(now, now - arrived)

    def stood_in(self, now: float, query: int, arrived: float, *, runs: bool) -> None:
        """A stand-in has answered a query; `runs`: the model is running it."""
        self._answered.add(now, now - arrived)
        self._owed[query] = _Owed(arrived, now)
        if not runs:
            self.ended(now, (query,), known=False)
        elif len(self._owed) > MAX_OWED:
            self.ended(now, (next(iter(self._owed)),), known=False)

    def ended(self, now: float, queries: Iterable[int], *, known: bool) -> None:
        """The model has run these queries; `known`: its answers are here. Others are left alone."""
        if not self._owed:
            return
        for query in queries:
            owed = self._owed.pop(query, None)
            if owed is not None:
                self._alone.add(now, max(now, owed.answered) - owed.arrived, owed.weight)
                self._settled.append((now, known))

    def spared(self, queries: Iterable[int], stands_for: int) -> None:
        """The model's unit with these queries runs on, for so many, the others of which are
        cancelled."""
        for query in queries:
            if query in self._owed:
                self._owed[query].weight = stands_for

    def cancelled(self, queries: Iterable[int]) -> None:
        """The model's unit with these queries is cancelled: others stand for them."""
        for query in queries:
            owed = self._owed.get(query)
            if owed is not None and owed.weight == 1:  # else another unit with it was spared
                del self._owed[query]

    @property
    def owed(self) -> int:
        """How many queries' own answers are waited for."""
        return len(self._owed)

    def with_stand_ins(self, now: float) -> Tail:
        """What the latencies are."""
        return self._answered.tail(now)

    def without(self, now: float) -> Tail:
        """What they would have been."""
        return self._alone.tail(now)

    def settled(self, now: float) -> tuple[int, int]:
        """In the last minutes: of how many queries that a stand-in answered the own answer, or a
        bound, has become known; and of how many the answer."""
        while self._settled and self._settled[0][0] < now - MINUTES:
            self._settled.popleft()
        return len(self._settled), sum(known for _, known in self._settled)
