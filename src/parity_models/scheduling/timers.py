"""Timers that can be cancelled without leaving anything behind."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

LEAST_DELAY = 1e-4
"""Minimum delay, in seconds, before a postponed decision is reconsidered.

A delay learned from units that took no time would be 0, and the decision would be reconsidered for
ever at one instant.
"""


@dataclass(slots=True, eq=False)
class Timer:
    """Something to do at a time, until it is done or cancelled."""

    callback: Callable[[], None] | None


class Timers:
    """A heap of timers; those due at the same time fire in the order they were set.

    Cancelled timers are removed once they are the majority.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = 0
        self._live = 0

    def __len__(self) -> int:
        """The timers in memory: those still to fire, and cancelled ones not yet removed."""
        return len(self._heap)

    def set(self, at: float, callback: Callable[[], None]) -> Timer:
        self._order += 1
        timer = Timer(callback)
        heapq.heappush(self._heap, (at, self._order, timer))
        self._live += 1
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Cancel a timer; one that has fired or is None is left alone."""
        if timer is None or timer.callback is None:
            return
        timer.callback = None
        self._live -= 1
        if not self._live:
            self._heap.clear()
        elif len(self._heap) > 2 * self._live + 16:
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)

    def fire(self, now: float) -> None:
        """Run the callbacks that are due at `now`, earliest first."""
        while self._heap and self._heap[0][0] <= now:
            timer = heapq.heappop(self._heap)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._live -= 1
                callback()

    def next(self) -> float | None:
        """When the earliest timer is due."""
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
