"""Judge redundancy by its measured effect, not by a model of it.

A query is *delayed* if it is unanswered at the age by which a stand-in asked in time would have
answered (the limit). While help reaches queries, few are delayed. Once more than TOLERATED of
WINDOW queries are delayed, a test begins: in short alternating slices of time, arriving queries are
helped or left alone, and the shares that are delayed are compared. Slices see every effect of
redundancy, including the load it adds, and no cause has to be known.

A test ends when the shares differ by CLEAR standard errors, which takes a second or two at 100
queries a second where redundancy does harm, or after LARGEST queries of each kind. Redundancy helps
if fewer helped queries than unhelped ones are delayed, by at least one standard error, or if no
more than TOLERATED of the helped are delayed and the unhelped are not better off. Then the next
test comes no sooner than FIRST_INTERVAL seconds later, and each further interval is twice as long.
Otherwise redundancy pauses, and the test is repeated after FIRST_PAUSE seconds, and after twice as
long with each failure. In a pause, queries are helped once they are delayed, as the unhelped were
in the test.

If more than SWAMPED of the helped queries are delayed, and the share of the others is not higher by
two standard errors, the machine cannot keep up: the test ends at once, and the pause is without
help.

Queries that a test leaves alone are helped once they are delayed. So a test costs them no more than
the time of a stand-in, and only where help was not reaching queries anyway.
"""

from enum import StrEnum
from math import inf, sqrt


class Redundancy(StrEnum):
    """The state of redundant work."""

    ON = "on"
    TESTING = "testing"
    """It is sent for every other slice of queries, as a test."""
    PAUSED = "paused"
    """It did not help in the last test."""
    BOTTLENECK = "bottleneck"
    """The server's own process is the bottleneck."""
    OFF = "off"
    """It is switched off."""


WINDOW, TOLERATED = 200, 0.03
"""A test begins once a larger share than TOLERATED of WINDOW queries is delayed."""

SLICE, SLICE_QUERIES = 0.25, 10
"""The length of a slice in seconds, and its minimum number of queries."""

STEP, LARGEST = 50, 1000
"""A test looks at its result after every STEP queries of each kind, up to LARGEST of them."""

CLEAR = 3.0
"""Standard errors of the difference at which a test ends early."""

SWAMPED = 0.5
"""The share of delayed queries from which a test that shows no benefit ends at once."""

FIRST_INTERVAL, FIRST_PAUSE, MAX_INTERVAL = 5.0, 1.0, 600.0
"""Seconds between tests: first interval while redundancy helps, first pause, and the maximum. The
first tests judge by few run times, so a first pause is short."""


class Effect:
    """See above. Times in seconds. `state` is ON, TESTING or PAUSED."""

    def __init__(self) -> None:
        self.state = Redundancy.ON
        self.acts_from = inf
        """The time from which `arrived` matters."""
        self._limit, self._known_from = 0.0, inf
        self._counted = self._delayed = 0
        self._test_from = 0.0
        self._interval, self._pause = FIRST_INTERVAL, FIRST_PAUSE
        self._helped = True
        self._swamped = True
        self._slice_until, self._slice_left = 0.0, 0
        self._test = 0
        """The number of the test that runs, or was last."""
        self._results = {True: [0, 0], False: [0, 0]}
        """The numbers of ended and of delayed queries, for helped queries and for others."""

    def arrived(self, now: float) -> int:
        """Return the group of a query that arrives at `acts_from` or later: the number of its test,
        negative if the test leaves the query alone. That of other queries is 0."""
        if self.state is not Redundancy.TESTING:
            self._begin_test()
        if now >= self._slice_until and self._slice_left <= 0:
            self._helped = not self._helped
            self._slice_until, self._slice_left = now + SLICE, SLICE_QUERIES
        self._slice_left -= 1
        return self._test if self._helped else -self._test

    def helps_from(self, group: int, arrived: float) -> float:
        """Return the time from which redundant work may be sent for a query of this group."""
        tested = self.state is Redundancy.TESTING and abs(group) == self._test
        if group > 0 if tested else self.state is not Redundancy.PAUSED:
            return arrived
        swamped = self.state is Redundancy.PAUSED and self._swamped
        return self.acts_from if swamped else arrived + self._limit

    def ended(self, now: float, group: int, latency: float, limit: float) -> None:
        """A query of this group has ended after `latency` seconds; the limit is `limit` now."""
        if self.state is Redundancy.TESTING:
            if abs(group) == self._test:
                result = self._results[group > 0]
                result[0] += 1
                result[1] += latency > self._limit
                if result[0] % STEP == 0:
                    self._judge(now)
        elif self.state is Redundancy.ON and limit > 0:
            self._limit = limit
            self._known_from = min(self._known_from, now)
            if now - latency < self._known_from:
                return  # it arrived before anything could be sent for it
            if self._counted >= WINDOW:
                self._counted = self._delayed = 0
            self._counted += 1
            self._delayed += latency > limit
            if self._delayed > TOLERATED * WINDOW and now >= self._test_from:
                self._begin_test()

    def _begin_test(self) -> None:
        self._counted = self._delayed = 0
        self.acts_from = -inf
        self._test += 1
        self._results = {True: [0, 0], False: [0, 0]}
        self._slice_until, self._slice_left = 0.0, 0
        self.state = Redundancy.TESTING

    def _judge(self, now: float) -> None:
        (helped, delayed), (alone, delayed_alone) = self._results[True], self._results[False]
        least = min(helped, alone)
        if least < STEP:
            return
        better = delayed_alone / alone - delayed / helped
        share = (delayed + delayed_alone) / (helped + alone)
        error = sqrt(share * (1 - share) * (1 / helped + 1 / alone))
        swamped = delayed > SWAMPED * helped and better <= 2 * error
        if abs(better) <= CLEAR * error and least < LARGEST and not swamped:
            return
        few = delayed <= TOLERATED * helped and better >= -error
        if better > error or few:
            self.state, self.acts_from = Redundancy.ON, inf
            self._test_from, self._pause = now + self._interval, FIRST_PAUSE
            self._interval = min(MAX_INTERVAL, 2 * self._interval)
        else:
            self.state, self.acts_from = Redundancy.PAUSED, now + self._pause
            self._swamped = swamped
            self._test_from, self._interval = self.acts_from, FIRST_INTERVAL
            self._pause = min(MAX_INTERVAL, 2 * self._pause)
