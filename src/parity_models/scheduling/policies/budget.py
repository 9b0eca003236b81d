"""A budget for redundant tasks."""

BURST = 10.0
"""The tasks that may be saved up while few are needed."""


class Budget:
    """Allow `share` redundant tasks per query on average: at most `burst` + share * n for n
    consecutive queries."""

    def __init__(self, share: float, burst: float = BURST) -> None:
        self._share = share
        self._burst = self._saved = burst

    def earn(self) -> None:
        """Add the share of a query that arrived."""
        saved = self._saved + self._share
        self._saved = saved if saved < self._burst else self._burst

    @property
    def left(self) -> float:
        """The tasks that may be sent now."""
        return self._saved

    def spend(self) -> bool:
        """Spend a task. Return whether the budget allowed it."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
