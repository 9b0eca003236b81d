"""How long units run, estimated from the recent ones, those cut short included."""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator

STEP = 0.75
"""Of two ages that are told apart, the share of units that reach the later one, of those that
reach the earlier."""

AGAIN = 2.0
"""Of units that are late without a bound that is known, half run for so many times as long (the
law of Pareto, with the exponent 1)."""

RAREST = 0.001
"""Ages that no more than this share of units reach are not told apart."""


class RunTimes:
    """The run times of the last `window` units; estimates are renewed every `every` of them.

    A unit that was cancelled, or whose instance left, tells only that it would have taken longer.
    The share of units that take longer than a time is the estimate of Kaplan and Meier
    (Nonparametric estimation from incomplete observations, JASA 1958), which uses that as well;
    without it, the more slow units redundancy cuts short, the less slow all would seem. Where
    nearly all that are late are cut short, it would rest on the one or two that are not, and swing
    with them: so a unit that is cut short past the median is taken to run AGAIN times as long.
    Where all were cut short, as by upstreams that are busy, what was known stays known. Times in
    seconds.
    """

    def __init__(self, *, window: int = 1000, every: int = 50) -> None:
        self._window = window
        self.every = every
        self._until_update = every
        self._recent: deque[tuple[float, bool]] = deque()
        self._ranked: list[tuple[float, bool]] = []
        # The times of finished units, and the share that takes longer than each; the shares are
        # kept negative, so that they ascend as the times do.
        self._times: list[float] = []
        self._shares: list[float] = []
        # From each of these times on, what units still take on average, and the integral of time
        # times share.
        self._left: list[float] = []
        self._moments: list[float] = []

    def add(self, seconds: float, *, finished: bool) -> bool:
        """A unit has run for so long, to its end or not; were the estimates renewed?"""
        if not finished and self.median is not None and seconds >= self.median:
            seconds, finished = AGAIN * seconds, True
        unit = (seconds, not finished)
        self._recent.append(unit)
        insort(self._ranked, unit)
        if len(self._recent) > self._window:
            del self._ranked[bisect_left(self._ranked, self._recent.popleft())]
        self._until_update -= 1
        if self._until_update:
            return False
        self._until_update = self.every
        return self._estimate()

    @property
    def median(self) -> float | None:
        """Half of the units take longer; None while that is unknown."""
        index = bisect_left(self._shares, -0.5)
        return self._times[index] if index < len(self._times) else None

    @property
    def longest(self) -> float:
        """The longest that a unit is known to have run."""
        return self._ranked[-1][0] if self._ranked else 0.0

    def share_longer(self, seconds: float) -> float:
        """The share of units that take longer than this."""
        index = bisect_right(self._times, seconds)
        return -self._shares[index - 1] if index else 1.0

    def ages(self) -> Iterator[tuple[float, float]]:
        """The ages at which one may decide about a unit, and the shares of units that take longer:
        each is reached by fewer."""
        share = 1.0
        while share > RAREST:
            index = bisect_left(self._shares, -share)
            if index == len(self._times):
                return
            age = self._times[index]
            longer = self.share_longer(age)
            yield age, longer
            share = longer * STEP

    def left(self, age: float, since: float) -> tuple[float, float]:
        """How long a unit of this age runs yet, counted from the age `since` on, on average.

        Also the mean of that time weighted with the age of the unit in it, in square seconds. A
        unit that is older than all that are known is expected to take as long again.
        """
        share = self.share_longer(age)
        if share <= 0 or age >= self._times[-1]:
            longer = max(0.0, 2 * age - since)
            return longer, longer * (2 * age + since) / 2
        index = bisect_right(self._times, since)
        if index == len(self._times):
            return 0.0, 0.0
        before = -self._shares[index - 1] if index else 1.0
        until = self._times[index]
        left = before * (until - since)
        moment = left * (until + since) / 2
        return (left + self._left[index]) / share, (moment + self._moments[index]) / share

    def _estimate(self) -> bool:
        """Renew the estimates, if a unit of the window has finished; has one?"""
        times, shares = [], []
        share = -1.0
        at_risk = len(self._ranked)
        for seconds, cut_short in self._ranked:
            if not cut_short:
                share -= share / at_risk
                times.append(seconds)
                shares.append(share)
            at_risk -= 1
        if not times:
            return False
        self._times, self._shares = times, shares
        self._left, self._moments = [0.0] * len(times), [0.0] * len(times)
        left = moment = 0.0
        for index in range(len(times) - 2, -1, -1):
            start, until = times[index], times[index + 1]
            area = -shares[index] * (until - start)
            left += area
            moment += area * (start + until) / 2
            self._left[index], self._moments[index] = left, moment
        return True
