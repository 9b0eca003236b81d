"""Quantiles of what happened recently."""

from collections import deque


class RecentDurations:
    """The last `window` durations; quantiles are brought up to date every `every` of them."""

    def __init__(self, *, window: int = 1000, every: int = 50) -> None:
        self._recent: deque[float] = deque(maxlen=window)
        self._ranked: list[float] = []
        self.every = every
        self._until_update = every

    def add(self, seconds: float) -> bool:
        """Something took so long; were the quantiles brought up to date?"""
        self._recent.append(seconds)
        self._until_update -= 1
        if self._until_update:
            return False
        self._until_update = self.every
        self._ranked = sorted(self._recent)
        return True

    def quantile(self, share: float) -> float | None:
        """The duration that this share stayed below; None before the first update."""
        if not self._ranked:
            return None
        return self._ranked[int(share * len(self._ranked))]
