"""Latencies of the last seconds and minutes, as counts in buckets: cheap to add to, and to read."""

from collections import Counter, deque
from math import ceil, exp, floor, log

from msgspec import Struct

NOW = 10
"""Seconds that count as now."""

MINUTES = 300
"""Seconds that are remembered."""

WIDTH = 0.02
"""The width of a bucket, as a share of the latency at which it begins."""

SHORTEST = 1e-6
"""Seconds; anything shorter counts as this."""

_SCALE = 1 / log(1 + WIDTH)


class Percentiles(Struct, frozen=True):
    """Of `count` latencies, in milliseconds."""

    count: int
    p50: float
    p99: float
    p999: float


class Tail(Struct, frozen=True):
    """Latencies of the last seconds, and of the last minutes; None where there were none."""

    now: Percentiles | None = None
    minutes: Percentiles | None = None


class Latencies:
    """Latencies in seconds, by the second in which they became known; they count once it is over.

    A time earlier than one before counts as that one.
    """

    def __init__(self) -> None:
        self._second = 0
        self._current: Counter[int] = Counter()
        self._minutes = _Window(MINUTES)
        self._now = _Window(NOW)

    def add(self, now: float, latency: float) -> None:
        """Add a latency that became known at the time `now`."""
        if now >= self._second + 1:
            self._turn(int(now))
        self._current[floor(log(max(latency, SHORTEST)) * _SCALE)] += 1

    def tail(self, now: float) -> Tail:
        """Return the percentiles at the time `now`, each accurate to half a bucket."""
        if now >= self._second + 1:
            self._turn(int(now))
        return Tail(self._now.percentiles(), self._minutes.percentiles())

    def _turn(self, second: int) -> None:
        for window in (self._minutes, self._now):
            window.add(self._second, self._current, second - window.seconds)
        self._second, self._current = second, Counter()


class _Window:
    """The counts of the last `seconds`."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self._counts: Counter[int] = Counter()
        self._slots: deque[tuple[int, Counter[int]]] = deque()

    def add(self, second: int, counts: Counter[int], forget_before: int) -> None:
        if counts:
            self._slots.append((second, counts))
            self._counts.update(counts)
        while self._slots and self._slots[0][0] < forget_before:
            self._counts.subtract(self._slots.popleft()[1])
            self._counts = +self._counts

    def percentiles(self) -> Percentiles | None:
        total = self._counts.total()
        if not total:
            return None
        ranks = [ceil(total * share) for share in (0.5, 0.99, 0.999)]
        values: list[float] = []
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            while len(values) < len(ranks) and seen >= ranks[len(values)]:
                values.append(1e3 * exp((bucket + 0.5) / _SCALE))
        return Percentiles(total, *values)
