"""Which server a call goes to: the better one of two drawn at random.

The better one has fewer calls in flight and shorter recent run times (as in Prequal, Wydrowski et
al., NSDI 2024): it is expected to answer first. A server that was slow, or failed, is tried again
after some seconds, as its times are forgotten meanwhile.
"""

from collections.abc import Collection, Sequence
from math import exp
from random import Random
from typing import Any

FORGET = 2.0
"""Seconds in which most of what is known of a server is forgotten."""

NEWEST = 0.1
"""The weight of the newest run time of a server."""

FAILED = 30.0
"""A call that fails counts as one that took this many times the median run time."""


class Server:
    """A server, and what is known of it. The user's function is given its `arguments`."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.in_flight = 0
        self._recent, self._updated = 1.0, 0.0

    def slowness(self, now: float) -> float:
        """Return its recent run times, in medians of calls of their kind."""
        return 1 + (self._recent - 1) * exp((self._updated - now) / FORGET)

    def expected(self, now: float) -> float:
        """Return the expected time to an answer, in medians."""
        return (1 + self.in_flight) * self.slowness(now)

    def ended(self, now: float, medians: float, *, finished: bool = True) -> None:
        """Learn from the run time of a call, which ran to its end or not."""
        slowness = self.slowness(now)
        if finished or medians > slowness:
            self._recent, self._updated = slowness + NEWEST * (medians - slowness), now


class Servers:
    """Chooses among `targets`. Without any, there is one server, of which calls are not told."""

    def __init__(self, targets: Sequence[Any], random: Random) -> None:
        self.all = [Server(each) for each in targets] or [Server()]
        self._draw = random.random

    def choose(self, now: float, tried: Collection[Server] = ()) -> Server:
        """Return the server for a call, one that was not `tried` if there is one."""
        left = [each for each in self.all if each not in tried] if tried else self.all
        left = left or self.all
        if len(left) == 1:
            return left[0]
        first, other = int(self._draw() * len(left)), int(self._draw() * (len(left) - 1))
        drawn = left[first], left[other + (other >= first)]
        return min(drawn, key=lambda each: each.expected(now))
