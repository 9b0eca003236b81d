"""Which instances do badly more often than the others do.

A cumulative sum for each instance (Page, Continuous inspection schemes, Biometrika 1954) weighs two
hypotheses after each event, good or bad. One: the instance does badly as often as the others lately
do, with probability p. Two: it does well half as often as they do, so badly with probability
(1 + p) / 2. The sum is the logarithm of their likelihood ratio, never below 0.

What all instances do badly at the same time (inputs that fail anywhere, inputs that a stand-in has
not learned) raises p, so that no instance stands out.
"""

from collections import deque
from math import log

WINDOW = 100
"""The latest events, of all instances together, from which p is estimated. A longer window follows
a sudden rise of p more slowly, and meanwhile honest instances stand out."""

STANDS_OUT = 14.0
"""The sum from which an instance stands out. An honest one reaches it at most once in e^14 events,
1.2 million (Lorden, Procedures for reacting to a change in distribution, Annals of Mathematical
Statistics 1971). If the others never do badly, 4 bad events in a row reach it.
"""


class Outliers:
    """Weighs what each instance does against what the others do."""

    def __init__(self) -> None:
        self._recent: deque[tuple[str, bool]] = deque()
        self._done: dict[str, int] = {}
        self._bad: dict[str, int] = {}
        self._all_bad = 0
        self._sums: dict[str, float] = {}

    def add(self, instance: str, *, bad: bool) -> float:
        """Count an event of an instance, `bad` or not; returns how much its sum has grown."""
        old = self._sums.get(instance, 0.0)
        new = max(0.0, old + self._evidence(instance, bad=bad)) if bad or old else 0.0
        if new != old:
            self._sums[instance] = new
        self._recent.append((instance, bad))
        self._count(instance, bad, 1)
        if len(self._recent) > WINDOW:
            self._count(*self._recent.popleft(), -1)
        return new - old

    def stands_out(self, instance: str) -> bool:
        """Does it do badly more often than the others do?"""
        return self._sums.get(instance, 0.0) >= STANDS_OUT

    def is_clear(self, instance: str) -> bool:
        """Does nothing speak against it?"""
        return not self._sums.get(instance)

    def take_back(self, instance: str, growth: float) -> None:
        """Something that it did badly was not its fault; its sum had grown by so much."""
        if instance in self._sums:
            self._sums[instance] = max(0.0, self._sums[instance] - growth)

    def clear(self, instance: str) -> None:
        """Begin anew with this instance, or forget it."""
        self._sums.pop(instance, None)
        if self._done.pop(instance, 0):
            self._all_bad -= self._bad.pop(instance, 0)
            self._recent = deque(done for done in self._recent if done[0] != instance)

    def _count(self, instance: str, bad: bool, change: int) -> None:
        self._done[instance] = self._done.get(instance, 0) + change
        if bad:
            self._bad[instance] = self._bad.get(instance, 0) + change
            self._all_bad += change
        if not self._done[instance]:
            del self._done[instance]
            self._bad.pop(instance, None)

    def _evidence(self, instance: str, *, bad: bool) -> float:
        others = len(self._recent) - self._done.get(instance, 0)
        bad_others = self._all_bad - self._bad.get(instance, 0)
        usual = (bad_others + 1) / (others + 2)  # Laplace's rule of succession
        worse = (1 + usual) / 2
        return log(worse / usual) if bad else log((1 - worse) / (1 - usual))
