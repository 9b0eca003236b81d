"""How many instances work that can wait leaves idle, for the queries about to arrive.

The number of queries under way fluctuates by its root: with as many instances more than are busy
on average, few queries wait (Halfin and Whitt, Heavy-traffic limits for queues with many
exponential servers, Operations Research 1981). Which share of these it takes is learned: it falls
while the median query is answered about as soon as the median unit has run, and rises when too
many queries wait or get slow instances. Where batches are not full, an arriving query joins one
rather than needing an instance, and instances are never idle for long, however many there are: the
margin shrinks with the square of the share of batches that are full.
"""

from math import sqrt

from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Unit

DELAY = 1.02
"""How long the median answer may take, in median run times."""

STEP = 0.005
"""By how much one answer changes the share."""

NEWEST = 0.02
"""The weight of the newest unit in the share of units that are full."""


class Margin:
    """The instances that are left idle, as answers tell; `run_times` are those of originals."""

    def __init__(self, run_times: RunTimes) -> None:
        self._run_times = run_times
        self._share = 0.0
        self._full = 1.0

    def ran(self, unit: Unit, max_batch: int) -> None:
        """A unit of originals, of which one holds `max_batch` at most, has ended."""
        self._full += NEWEST * ((len(unit.tasks) == max_batch) - self._full)

    def answered(self, latency: float) -> None:
        """A query was answered after so many seconds."""
        median = self._run_times.median
        if median is not None:
            step = STEP if latency > DELAY * median else -STEP
            self._share = min(1.0, max(0.0, self._share + step))

    def kept(self, pending: int) -> int:
        """How many instances are left idle while so many queries are under way."""
        return round(self._share * self._full * self.fluctuation(pending))

    def fluctuation(self, pending: int) -> float:
        """By how many batches, about, the queries under way fluctuate."""
        return self._full * sqrt(pending)
