"""The number of instances that preemptible work must leave idle, for queries about to arrive.

The number of queries in flight fluctuates by about its square root. With that many instances more
than are busy on average, few queries wait (Halfin and Whitt, Heavy-traffic limits for queues with
many exponential servers, Operations Research 1981). The share of them that is left idle is learned:
it falls while the median query is answered about as soon as the median unit has run, and rises when
too many queries wait or get slow instances. Where batches are not full, an arriving query joins a
batch and needs no idle instance. So the margin shrinks with the square of the share of batches that
are full.
"""

from math import sqrt

from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Unit

DELAY = 1.02
"""The longest that the median answer may take, in median run times."""

STEP = 0.005
"""The change of the share for each answer."""

NEWEST = 0.02
"""The weight of the newest unit in the share of units that are full."""


class Margin:
    """Learn how many instances to leave idle; `run_times` are those of originals."""

    def __init__(self, run_times: RunTimes) -> None:
        self._run_times = run_times
        self._share = 0.0
        self._full = 1.0

    def ran(self, unit: Unit, max_batch: int) -> None:
        """Record a unit of originals; a full one holds `max_batch` tasks."""
        self._full += NEWEST * ((len(unit.tasks) == max_batch) - self._full)

    def answered(self, latency: float) -> None:
        """Record that a query was answered after `latency` seconds."""
        median = self._run_times.median
        if median is not None:
            step = STEP if latency > DELAY * median else -STEP
            self._share = min(1.0, max(0.0, self._share + step))

    def kept(self, pending: int) -> int:
        """Return how many instances to leave idle while `pending` queries are in flight."""
        return round(self._share * self._full * self.fluctuation(pending))

    def fluctuation(self, pending: int) -> float:
        """Return by about how many batches `pending` queries fluctuate."""
        return self._full * sqrt(pending)
