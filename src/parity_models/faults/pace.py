"""Workers that run at another pace: units take a factor of their usual time.

The factor depends on the plan, the worker's number and the time since injection began alone.
"""

from collections.abc import Iterator
from math import inf
from typing import Annotated

import msgspec

from parity_models.faults.distributions import Spell

Factor = Annotated[float, msgspec.Meta(ge=0.01, le=1000)]


class Degradation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Workers get slower until they are recycled: a rotating part of them at a time.

    Workers are in so many `sets`, by their number modulo that, which take turns of `turn` seconds.
    In its turn units of a set take longer and longer, from their usual time to `factor` times as
    long; then the set is as new, and the next one's turn begins.
    """

    sets: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    turn: Spell
    factor: Factor = 6.0

    def at(self, worker: int, time: float) -> float:
        """How many times as long the worker's units take at a time."""
        turn, into = divmod(time, self.turn)
        if turn % self.sets != worker % self.sets:
            return 1.0
        return 1.0 + (self.factor - 1.0) * into / self.turn


class ColdStart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A worker in whose place a new one has come after a kill begins slowly.

    From the kill on units take `factor` times as long, which falls to their usual time over
    `length` seconds: caches are cold, code is not compiled.
    """

    factor: Factor
    length: Spell


class Pace:
    """How many times as long one worker's units take; asked about times that never decrease.

    `factor` is for the whole of the plan, as on older hardware; `kills` are when the worker dies,
    ascending.
    """

    def __init__(
        self,
        worker: int,
        factor: float,
        degradation: Degradation | None,
        cold: ColdStart | None,
        kills: Iterator[float],
    ) -> None:
        self._worker = worker
        self._factor = factor
        self._degradation = degradation
        self._cold = cold
        self._kills = kills
        self._last, self._next = -inf, -inf

    def at(self, time: float) -> float:
        factor = self._factor
        if self._degradation is not None:
            factor *= self._degradation.at(self._worker, time)
        if self._cold is not None:
            while self._next <= time:
                self._last, self._next = self._next, next(self._kills, inf)
            warm = min(1.0, (time - self._last) / self._cold.length)
            factor *= 1.0 + (self._cold.factor - 1.0) * (1.0 - warm)
        return factor
