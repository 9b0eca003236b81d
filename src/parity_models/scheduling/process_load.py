"""The load of the process that the scheduler runs in: late reports are not late instances.

Reports, timers and requests wait for the event loop. If that wait is a large part of a unit's run
time, or the loop always computes, the process itself is the bottleneck. Redundant work costs the
loop as much as originals do, so it makes queries later still.

A loop that computes little, and is late as other processes keep the processors busy, is no
bottleneck: help that runs elsewhere costs it little time.
"""

NEWEST = 0.01
"""The weight of the newest measurement."""

SHARE, MIN_LAG = 0.1, 0.002
"""The process is the bottleneck once the wait exceeds this share of a median run time and this many
seconds, until it is below half the larger of the two; not while the loop is busy for less than the
share HAS_TIME."""

HAS_TIME = 0.25

BUSY, NOT_BUSY = 0.9, 0.75
"""It is also the bottleneck once the loop is busy for the share BUSY of the time, until that share
is below NOT_BUSY."""

MEASURE_INTERVAL = 0.1
"""Seconds between two measurements of how busy it is."""


class ProcessLoad:
    """Measures how late the event loop is (`lag`, in seconds), and how `busy`: the share of the
    time in which it computed, not waited for a processor."""

    def __init__(self) -> None:
        self.lag = 0.0
        self.busy = 0.0
        self.is_bottleneck = False
        self._has_time = False
        """It is known to be busy for less than the share HAS_TIME."""
        self._waits, self._waited = 0, 0.0

    @property
    def mean_lag(self) -> float:
        """The lag in seconds, on average from the beginning."""
        return self._waited / max(1, self._waits)

    def measured(self, busy: float) -> None:
        """Set how busy the loop is."""
        self.busy, self._has_time = busy, busy < HAS_TIME

    def waited(self, seconds: float, typical_run: float) -> None:
        """Count a report or a timer that waited this many seconds for the loop."""
        self._waits += 1
        self._waited += max(0.0, seconds)
        self.lag += NEWEST * (max(0.0, seconds) - self.lag)
        limit, busy = max(MIN_LAG, SHARE * typical_run), BUSY
        if self.is_bottleneck:
            limit, busy = limit / 2, NOT_BUSY
        self.is_bottleneck = self.busy >= busy or (self.lag > limit and not self._has_time)
