"""Latencies of the last seconds and minutes, as counts in buckets: cheap to add to, and to read."""

from collections import Counter, deque
from collections.abc import Mapping
from math import ceil, exp, floor, log

from parity_models.serving.page.frames import Percentiles, Tail

NOW = 10
"""Seconds that count as now."""

MINUTES = 300
"""Seconds that are remembered."""

WIDTH = 0.02
"""The width of a bucket, as a share of the latency at which it begins."""

SHORTEST = 1e-6
"""Seconds; what took less counts as this."""

_SCALE = 1 / log(1 + WIDTH)


class Latencies:
    """Latencies in seconds, by the second in which they became known; they count once it is over.

    Times may not go back; one that does counts as the latest before it.
    """

    def __init__(self) -> None:
        self._second = 0
        self._current: Counter[int] = Counter()
        self._minutes = _Window(MINUTES)
        self._now = _Window(NOW)

    def add(self, now: float, latency: float, weight: int = 1) -> None:
        """Add a latency that became known at the time `now`, and counts `weight` times."""
        if now >= self._second + 1:
            self._turn(int(now))
        self._current[floor(log(max(latency, SHORTEST)) * _SCALE)] += weight

    def tail(self, now: float) -> Tail:
        """The percentiles at the time `now`; each is right within half a bucket."""
        if now >= self._second + 1:
            self._turn(int(now))
        return Tail(_percentiles(self._now.counts), _percentiles(self._minutes.counts))

    def _turn(self, second: int) -> None:
        for window in (self._minutes, self._now):
            window.add(self._second, self._current)
            window.forget_before(second - window.seconds)
        self._second, self._current = second, Counter()


class _Window:
    """The counts of the last `seconds`."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self.counts: Counter[int] = Counter()
        self._slots: deque[tuple[int, Counter[int]]] = deque()

    def add(self, second: int, counts: Counter[int]) -> None:
        if counts:
            self._slots.append((second, counts))
            self.counts.update(counts)

    def forget_before(self, second: int) -> None:
        while self._slots and self._slots[0][0] < second:
            _, counts = self._slots.popleft()
            for bucket, count in counts.items():
                self.counts[bucket] -= count
                if not self.counts[bucket]:
                    del self.counts[bucket]


def _percentiles(counts: Mapping[int, int]) -> Percentiles | None:
    total = sum(counts.values())
    if not total:
        return None
    ranks = [ceil(total * share) for share in (0.5, 0.99, 0.999)]
    values: list[float] = []
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        while len(values) < len(ranks) and seen >= ranks[len(values)]:
            values.append(1e3 * exp((bucket + 0.5) / _SCALE))
    return Percentiles(total, *values)
