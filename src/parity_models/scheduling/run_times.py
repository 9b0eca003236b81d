"""Run times of units, estimated from the recent ones, including those cut short."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from itertools import accumulate

STEP = 0.75
"""Each of the `ages` is reached by this share of the units that reached the previous one."""

CUT_SHORT_FACTOR = 2.0
"""Half of the units that reach a late age run for this many times as long (Pareto's law with the
exponent 1)."""


class RecentDurations:
    """The last `window` durations; quantiles are updated after every `every` of them, for the first
    time after `first`."""

    def __init__(self, *, window: int = 1000, every: int = 50, first: int | None = None) -> None:
        self._recent: deque[float] = deque(maxlen=window)
        self._ranked: list[float] = []
        self._every = every
        self.added = 0
        """The number of new durations in the last update."""
        self._until_update = first or every

    def add(self, seconds: float, *, renew: bool = True) -> bool:
        """Add a duration. Return whether the quantiles were updated; without `renew`, they are
        not."""
        self._recent.append(seconds)
        self._until_update -= 1
        if self._until_update > 0 or not renew:
            return False
        self.added = self._every - self._until_update
        self._until_update = self._every
        self._ranked = sorted(self._recent)
        return True

    def quantile(self, share: float) -> float | None:
        """Return the duration that this share stayed below; None before the first update."""
        if not self._ranked:
            return None
        return self._ranked[int(share * len(self._ranked))]


class RunTimes(RecentDurations):
    """The run times of the last `window` units; estimates are renewed every `every` of them, and
    are there after the `first`.

    A unit that was cancelled, or whose instance left, would have taken longer than it ran. If it
    ran for longer than the median, it counts as CUT_SHORT_FACTOR times as long; otherwise, the more
    slow units redundancy cuts short, the faster units would seem. If it ran for less, it says very
    little and is left out. So estimates stay the same if all units are cut short, as by busy
    upstreams. Times in seconds.
    """

    def __init__(self, *, window: int = 1000, every: int = 50, first: int | None = None) -> None:
        super().__init__(window=window, every=every, first=first)
        # The sums of the n longest times, and of their squares, by n; empty until needed.
        self._sums: list[float] = []
        self._squares: list[float] = []

    def add(self, seconds: float, *, finished: bool = True, renew: bool = True) -> bool:
        """Add a unit that ran for `seconds`, to its end or not. Return whether estimates were
        updated; without `renew`, they are not."""
        if not finished:
            if self.median is None or seconds < self.median:
                return False
            seconds *= CUT_SHORT_FACTOR
        if not super().add(seconds, renew=renew):
            return False
        self._sums = []
        return True

    @property
    def median(self) -> float | None:
        """The median run time; None while it is unknown."""
        return self._ranked[(len(self._ranked) - 1) // 2] if self._ranked else None

    @property
    def longest(self) -> float:
        """The longest that a unit is known to have run."""
        return self._ranked[-1] if self._ranked else 0.0

    def exceeded_by(self, share: float) -> float:
        """Return the age that at most this share of units exceeds; 0 while it is unknown."""
        known = len(self._ranked)
        return self._ranked[max(0, known - 1 - int(share * known))] if known else 0.0

    def ages(self) -> Iterator[tuple[float, float]]:
        """Yield the ages at which one may decide about a unit, ascending, each with the share of
        units that take longer."""
        longer = len(self._ranked) - 1
        while longer > 0:
            age = self._ranked[-1 - longer]
            longer = self._longer(age)
            yield age, longer / len(self._ranked)
            longer = int(longer * STEP)

    def left(self, age: float, since: float) -> tuple[float, float]:
        """Return the mean time that a unit of this age still runs, counted from the age `since` on.

        Also return the mean of that time weighted with the unit's age, in square seconds. A unit
        that is older than all known ones is expected to take as long again.
        """
        running = self._longer(age)
        if not running:
            again = max(0.0, 2 * age - since)
            return again, again * (2 * age + since) / 2
        if not self._sums:
            self._sums = list(accumulate(reversed(self._ranked), initial=0.0))
            squares = [seconds**2 for seconds in reversed(self._ranked)]
            self._squares = list(accumulate(squares, initial=0.0))
        longer = self._longer(since)
        left = self._sums[longer] - longer * since
        moment = (self._squares[longer] - longer * since**2) / 2
        return left / running, moment / running

    def _longer(self, seconds: float) -> int:
        return len(self._ranked) - bisect_right(self._ranked, seconds)
