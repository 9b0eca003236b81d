"""A budget for copies of queries."""

BURST = 10.0
"""How many copies may be saved up while few are needed."""


class Budget:
    """Allows `share` copies a query, on average."""

    def __init__(self, share: float) -> None:
        if share <= 0:
            raise ValueError(f"the budget of copies a query must be above 0, got {share}")
        self._share = share
        self._saved = BURST

    def earn(self) -> None:
        """A query arrived."""
        self._saved = min(BURST, self._saved + self._share)

    def spend(self) -> bool:
        """May a copy be sent? If so, it is paid for."""
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
