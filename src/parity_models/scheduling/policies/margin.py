"""How many instances work that can wait leaves idle, for the queries about to arrive.

The number of queries under way fluctuates by its root; with so many instances more than are busy
on average, times a factor, few queries wait (Halfin and Whitt, Heavy-traffic limits for queues
with many exponential servers, Operations Research 1981). The factor is learned: it falls while
the median query is answered about as soon as the median unit has run, and rises, up to a limit,
when too many queries wait or get slow instances. Where batches are not full, an arriving query
joins one, and fewer instances are kept.
"""

from math import sqrt

from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Unit

DELAY = 1.02
"""How long the median answer may take, in median run times."""

STEP = 0.005
"""By how much one answer changes the factor."""

NEWEST = 0.02
"""The weight of the newest unit in the share of units that are full."""


class Margin:
    """The instances that are left idle, as answers tell; `run_times` are those of originals.

    The factor begins with `at_first`, and is at most `most`.
    """

    def __init__(self, run_times: RunTimes, *, at_first: float, most: float) -> None:
        self._run_times = run_times
        self._factor = at_first
        self._most = most
        self._full = 1.0

    def ran(self, unit: Unit, max_batch: int) -> None:
        """A unit of originals, of which one holds `max_batch` at most, has ended."""
        self._full += NEWEST * ((len(unit.tasks) == max_batch) - self._full)

    def answered(self, latency: float) -> None:
        """A query was answered after so many seconds."""
        median = self._run_times.median
        if median is not None:
            step = STEP if latency > DELAY * median else -STEP
            self._factor = min(self._most, max(0.0, self._factor + step))

    def kept(self, pending: int) -> int:
        """How many instances are left idle while so many queries are under way."""
        return round(self._factor * self._fluctuation(pending))

    def most(self, pending: int) -> int:
        """How many at most."""
        return round(self._most * self._fluctuation(pending))

    def _fluctuation(self, pending: int) -> float:
        return self._full * sqrt(pending)
