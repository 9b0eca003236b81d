"""How long to wait before something that ended is started again."""

FIRST = 0.1
LONGEST = 10.0
LONG_RUN = 10.0


class Backoff:
    """Doubles from 0.1 s to 10 s; begins anew after a run that lasted 10 s."""

    def __init__(self) -> None:
        self._next = FIRST

    def after(self, run: float) -> float:
        """Seconds to wait after a run of so many seconds."""
        if run >= LONG_RUN:
            self._next = FIRST
        delay, self._next = self._next, min(2 * self._next, LONGEST)
        return delay
