"""The back-off before something that ended is started again."""

FIRST = 0.1
LONGEST = 10.0
LONG_RUN = 1.0


class Backoff:
    """Doubles from FIRST to LONGEST seconds; starts again at FIRST after a run of `long_run`."""

    def __init__(self, long_run: float = LONG_RUN) -> None:
        self._long_run = long_run
        self._next = FIRST

    def after(self, run: float) -> float:
        """Return the seconds to wait after a run of `run` seconds."""
        if run >= self._long_run:
            self._next = FIRST
        delay, self._next = self._next, min(2 * self._next, LONGEST)
        return delay
