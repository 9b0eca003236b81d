"""Run times of units, estimated from the recent ones, including those cut short."""

from collections import deque

CUT_SHORT_FACTOR = 2.0
"""Half of the units that reach a late age run for this many times as long (Pareto's law with the
exponent 1)."""

STEP = 0.7
"""Ages are tried that are exceeded by a share of units, this times that share, and so on."""

BEYOND = 1.02
"""A unit that has run this many times as long as the longest known one is slow in any case."""


class RecentDurations:
    """The last `window` durations; quantiles are updated after every `every` of them, for the first
    time after `first`."""

    def __init__(self, *, window: int = 1000, every: int = 50, first: int | None = None) -> None:
        self._recent: deque[float] = deque(maxlen=window)
        self._ranked: list[float] = []
        self._every = every
        self._until_update = first or every

    def add(self, seconds: float) -> bool:
        """Add a duration. Return whether the quantiles were updated."""
        self._recent.append(seconds)
        self._until_update -= 1
        if self._until_update > 0:
            return False
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

    def add(self, seconds: float, *, finished: bool = True) -> bool:
        """Add a unit that ran for `seconds`, to its end or not. Return whether estimates were
        updated."""
        if not finished:
            if self.median is None or seconds < self.median:
                return False
            seconds *= CUT_SHORT_FACTOR
        return super().add(seconds)

    @property
    def median(self) -> float | None:
        """The median run time; None while it is unknown."""
        return self._ranked[(len(self._ranked) - 1) // 2] if self._ranked else None

    @property
    def longest(self) -> float:
        """The longest of the recent run times; 0 without any."""
        return max(self._recent, default=0.0)

    def lasts_from(self, share: float, longer: float) -> float:
        """Return the age, which at most this share of units exceeds, from which units run `longer`
        seconds more on average; if there is none, an age beyond all known ones; 0 while that is
        unknown."""
        if not self._ranked:
            return 0.0
        ranked, slower = self._ranked, int(share * len(self._ranked))
        while slower:
            age = ranked[-1 - slower] if slower < len(ranked) else 0.0
            if sum(ranked[-slower:]) / slower - age >= longer:
                return age
            slower = int(STEP * slower)
        return BEYOND * ranked[-1]
