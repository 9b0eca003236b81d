"""Whether redundancy helps, judged by what it does and not by a model of it.

A query is *late* if it is unanswered at the age by which a stand-in that was asked in time would
have answered. While help reaches the queries, few are late. Once more than TOLERATED of the last
WINDOW queries are, there is a test: queries are helped or left alone in alternating short slices,
by their arrival, and the shares that are late are compared. Slices see everything that redundancy
does, the load that it makes included, and no cause has to be known.

A test ends when the shares differ by two standard errors, or after LARGEST queries of each kind:
a second or two at 100 queries a second. If fewer of the helped queries are late, help goes on, and
the next test comes after FIRST seconds at the earliest, then after twice as many, and so on. If
not, nothing redundant is sent for FIRST seconds; then there is another test, and each further
failure doubles the pause. So what is left alone is at most half of the queries for as long as a
test lasts, and only where help does not reach them anyway.
"""

from collections.abc import Callable
from enum import Enum
from math import sqrt

WINDOW, TOLERATED = 100, 0.02
"""A test begins if a larger share than TOLERATED of the last WINDOW queries is late."""

SLICE, SLICE_QUERIES = 0.25, 10
"""The length of a slice in seconds, and the queries that it has at least."""

STEP, LARGEST = 50, 300
"""A test looks at its result after every STEP queries of each kind, up to LARGEST of them."""

FIRST, LONGEST = 5.0, 600.0
"""Seconds between tests: at first, and at most."""


class State(Enum):
    """What becomes of queries that are at risk."""

    HELPING = "helping"
    TESTING = "testing"
    PAUSED = "paused"


class Effect:
    """See above. `changed` is called with each new state. Times in seconds."""

    def __init__(self, changed: Callable[[State], None] = lambda state: None) -> None:
        self.state = State.HELPING
        self._changed = changed
        self._limit = 0.0
        self._counted = self._late = 0
        self._test_from = 0.0
        self._interval = self._pause = FIRST
        self._helped = True
        self._slice_until, self._slice_left = 0.0, 0
        self._kinds: dict[int, bool] = {}
        """Whether the queries of this test are helped."""
        self._results = {True: [0, 0], False: [0, 0]}
        """Of queries that are helped or not: how many have ended, and how many were late."""

    def arrived(self, now: float, query: int) -> None:
        """A query has arrived."""
        if self.state is State.PAUSED and now >= self._test_from:
            self._begin_test()
        if self.state is not State.TESTING:
            return
        if now >= self._slice_until and self._slice_left <= 0:
            self._helped = not self._helped
            self._slice_until, self._slice_left = now + SLICE, SLICE_QUERIES
        self._slice_left -= 1
        self._kinds[query] = self._helped

    def may_help(self, query: int) -> bool:
        """Return whether redundant work may be sent for the query."""
        return self._kinds.get(query, self.state is not State.PAUSED)

    def ended(self, now: float, query: int, latency: float, limit: float) -> None:
        """A query has ended after `latency` seconds; at the age `limit` queries are late now."""
        if self.state is State.TESTING:
            helped = self._kinds.pop(query, None)
            if helped is not None:
                result = self._results[helped]
                result[0] += 1
                result[1] += latency > self._limit
                if result[0] % STEP == 0:
                    self._judge(now)
        elif self.state is State.HELPING and limit > 0:
            self._limit = limit
            self._counted += 1
            self._late += latency > limit
            if self._counted == WINDOW:
                if self._late > TOLERATED * WINDOW and now >= self._test_from:
                    self._begin_test()
                self._counted = self._late = 0

    def _begin_test(self) -> None:
        self._results = {True: [0, 0], False: [0, 0]}
        self._slice_until, self._slice_left = 0.0, 0
        self._turn(State.TESTING)

    def _judge(self, now: float) -> None:
        (helped, late), (alone, late_alone) = self._results[True], self._results[False]
        least = min(helped, alone)
        if least < STEP:
            return
        better = late_alone / alone - late / helped
        share = (late + late_alone) / (helped + alone)
        error = sqrt(share * (1 - share) * (1 / helped + 1 / alone))
        if abs(better) <= 2 * error and least < LARGEST:
            return
        self._kinds.clear()
        if better > 0:
            self._test_from, self._pause = now + self._interval, FIRST
            self._interval = min(LONGEST, 2 * self._interval)
            self._turn(State.HELPING)
        else:
            self._test_from, self._interval = now + self._pause, FIRST
            self._pause = min(LONGEST, 2 * self._pause)
            self._turn(State.PAUSED)

    def _turn(self, state: State) -> None:
        self.state = state
        self._changed(state)
