"""A budget for redundant tasks."""

BURST = 10.0
"""How many tasks may be saved up while few are needed."""


class Budget:
    """Allows `share` redundant tasks a query, on average: of n queries in a row, BURST + share * n
    at most."""

    def __init__(self, share: float, burst: float = BURST) -> None:
        if share <= 0:
            raise ValueError(f"the budget of redundant tasks a query must be above 0, got {share}")
        self._share = share
        self._burst = self._saved = burst

    def earn(self, part: float = 1.0) -> None:
        """A query arrived, for which this part of the share is allowed."""
        self._saved = min(self._burst, self._saved + part * self._share)

    def is_left(self, reserve: float) -> bool:
        """Whether a task may be sent, and so many more could be."""
        return self._saved >= 1 + reserve

    def spend(self) -> bool:
        """Pay for a task. Return whether it may be sent."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
