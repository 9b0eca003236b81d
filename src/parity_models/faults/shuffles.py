"""Background transfers between workers."""

import heapq
from random import Random
from typing import Annotated

import msgspec

from parity_models.faults.distributions import SLICE, Distribution


class Shuffles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Background transfers: at all times `transfers` run, each between two workers drawn anew.

    A transfer lasts for a drawn `length`. Every unit of a worker takes a drawn `delay` longer
    for each transfer it is an end of (Kosaian et al., SOSP 2019, section 5.1). `workers` is how
    many there are to draw from: numbers 0 to workers - 1, of which not all need be there.
    """

    transfers: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    workers: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)]
    length: Distribution
    delay: Distribution


class Transfers:
    """The course of a plan's shuffles: which transfers run when, between whom.

    Drawn as far as asked for; each worker's times must not decrease. `only`: the one worker that
    will be asked about, so that nothing is remembered of the others; None: any.
    """

    def __init__(self, shuffles: Shuffles, seed: int, only: int | None = None) -> None:
        self._shuffles = shuffles
        self._only = only
        self._lanes = [Random(f"{seed}/shuffle {lane}") for lane in range(shuffles.transfers)]
        self._next = [(0.0, lane) for lane in range(shuffles.transfers)]
        self._spells: dict[int, list[tuple[float, float]]] = {}

    def active(self, worker: int, time: float) -> int:
        """The number of transfers that run at `time` and have the worker at an end."""
        self._draw_until(time)
        spells = [spell for spell in self._spells.get(worker, ()) if spell[1] > time]
        self._spells[worker] = spells
        return sum(start <= time for start, _ in spells)

    def _draw_until(self, time: float) -> None:
        while self._next[0][0] <= time:
            start, lane = self._next[0]
            rng = self._lanes[lane]
            length = self._shuffles.length.draw(rng)
            if start == 0:
                length *= rng.random()  # as if it had begun before, so that lanes do not march
            heapq.heapreplace(self._next, (start + max(length, SLICE), lane))
            for worker in rng.sample(range(self._shuffles.workers), 2):
                if self._only in (None, worker):
                    self._spells.setdefault(worker, []).append((start, start + length))
