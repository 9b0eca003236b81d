"""A live quantile of recent durations."""

from collections import deque


class RecentQuantile:
    """The quantile of the last `window` values, brought up to date every `every` values.

    None until the first update.
    """

    def __init__(self, quantile: float, *, window: int = 1000, every: int = 50) -> None:
        if not 0 < quantile < 1:
            raise ValueError(f"a quantile lies between 0 and 1, got {quantile}")
        self._quantile = quantile
        self._recent: deque[float] = deque(maxlen=window)
        self._every = every
        self._until_update = every
        self.value: float | None = None

    def add(self, value: float) -> None:
        self._recent.append(value)
        self._until_update -= 1
        if not self._until_update:
            self._until_update = self._every
            ranked = sorted(self._recent)
            self.value = ranked[int(self._quantile * len(ranked))]
