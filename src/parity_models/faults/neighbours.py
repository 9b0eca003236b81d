"""Another tenant on workers' accelerators."""

from random import Random
from typing import Annotated

import msgspec

from parity_models.faults.distributions import Distribution


class Neighbours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another tenant's units on the accelerators of `workers`: of two units there, one waits.

    They come to each of these by a Poisson process of `rate` a second, and take a drawn
    `service_time`.
    """

    rate: Annotated[float, msgspec.Meta(gt=0, le=10_000)]
    service_time: Distribution
    workers: tuple[int, ...]


class Neighbour:
    """The other tenant's units on one worker's accelerator, first come, first served."""

    def __init__(self, neighbours: Neighbours, rng: Random) -> None:
        self._neighbours = neighbours
        self._rng = rng
        self._next = 0.0
        self.free = 0.0
        self._arrive()

    def wait(self, time: float) -> float:
        """When the accelerator is free for a unit that came at `time`; never decreasing."""
        while self._next <= time:
            took = self._neighbours.service_time.draw(self._rng)
            self.free = max(self.free, self._next) + took
            self._arrive()
        return max(time, self.free)

    def _arrive(self) -> None:
        self._next += self._rng.expovariate(self._neighbours.rate)
