"""How long units run, estimated from the recent ones, those cut short included."""

from bisect import bisect_left, bisect_right, insort
from collections import deque


class RunTimes:
    """The run times of the last `window` units; estimates are renewed every `every` of them.

    A unit that was cancelled, or whose instance left, tells only that it would have taken longer.
    The share of units that take longer than a time is the estimate of Kaplan and Meier
    (Nonparametric estimation from incomplete observations, JASA 1958), which uses that as well;
    without it, the more slow units redundancy cuts short, the less slow all would seem. Times in
    seconds.
    """

    def __init__(self, *, window: int = 1000, every: int = 50) -> None:
        self._window = window
        self._every = every
        self._until_update = every
        self._recent: deque[tuple[float, bool]] = deque()
        self._ranked: list[tuple[float, bool]] = []
        # The times of finished units, and the share that takes longer than each; the shares are
        # kept negative, so that they ascend as the times do.
        self._times: list[float] = []
        self._shares: list[float] = []

    def add(self, seconds: float, *, finished: bool) -> bool:
        """A unit has run for so long, to its end or not; were the estimates renewed?"""
        unit = (seconds, not finished)
        self._recent.append(unit)
        insort(self._ranked, unit)
        if len(self._recent) > self._window:
            del self._ranked[bisect_left(self._ranked, self._recent.popleft())]
        self._until_update -= 1
        if self._until_update:
            return False
        self._until_update = self._every
        self._estimate()
        return True

    @property
    def median(self) -> float | None:
        """Half of the units take longer; None while that is unknown."""
        index = bisect_left(self._shares, -0.5)
        return self._times[index] if index < len(self._times) else None

    def share_longer(self, seconds: float) -> float:
        """The share of units that take longer than this."""
        index = bisect_right(self._times, seconds)
        return -self._shares[index - 1] if index else 1.0

    def worth_doubling(self, running: float, chance: float) -> float | None:
        """The age from which it is worth running a unit once more; None while that is unknown.

        It is the first at which at most the share `running` of units still run and, with this
        `chance` at least, a unit of that age takes another median and more: then a copy started
        now is there first. Where there is no such age, a unit is worth doubling once it has taken
        a median longer than all that are known: it is like none of them.
        """
        median = self.median
        if median is None:
            return None
        for index in range(bisect_left(self._shares, -running), len(self._times)):
            age, share = self._times[index], -self._shares[index]
            longer = self.share_longer(age + median)
            if longer > 0 and longer >= chance * share:
                return age
        return self._ranked[-1][0] + median

    def _estimate(self) -> None:
        times, shares = [], []
        share = -1.0
        at_risk = len(self._ranked)
        for seconds, cut_short in self._ranked:
            if not cut_short:
                share -= share / at_risk
                times.append(seconds)
                shares.append(share)
            at_risk -= 1
        self._times, self._shares = times, shares
