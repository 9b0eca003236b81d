"""Gaps and spells by turns."""

from random import Random

from parity_models.faults.distributions import Distribution


class Spells:
    """Gaps and spells by turns, from time 0 on; asked about times that never decrease."""

    def __init__(self, rng: Random, gap: Distribution, length: Distribution) -> None:
        self._rng = rng
        self._gap = gap
        self._length = length
        self._start = self._stop = 0.0

    def after(self, time: float) -> tuple[float, float]:
        """Start and end of the first spell that ends after `time`."""
        while self._stop <= time:
            self._start = self._stop + self._gap.draw(self._rng)
            self._stop = self._start + self._length.draw(self._rng)
        return self._start, self._stop
