"""A network with background transfers: what real links are shaped to and simulated ones obey.

At all times a fixed number of lanes each run one transfer after the other, out and back between
two distinct machines drawn at random (Kosaian et al., SOSP 2019, section 5.1). A transfer has its
links for as long as its bytes take at the links' rate. So who sends to whom at a time follows from
the seed alone.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

from parity_models.errors import UserError

RATE = 100e6
"""Bits a second that a machine receives; it sends at UP times that."""

UP = 2
"""So bytes wait at the receiver's end, as where many senders meet."""

QUEUE = 256_000
"""Bytes that wait at either end of a link at most."""

SIZES = 12_800_000, 25_600_000
"""Bytes of a transfer, out and back. As RATE, a tenth of the paper's."""


class ContentionError(UserError):
    """Contention that cannot be made on this machine."""


class Leg(NamedTuple):
    """One way of a transfer, from `start` to `end` in seconds, between two machines."""

    start: float
    end: float
    source: int
    target: int


def legs(machines: int, seed: int, lane: int) -> Iterator[Leg]:
    """Yield the course of a lane between `machines` machines, without end."""
    rng = Random(f"{seed}/shuffle {lane}")
    at = 0.0
    while True:
        source, target = rng.sample(range(machines), 2)
        length = 8 * rng.uniform(*SIZES) / RATE
        if at == 0.0:
            length *= rng.random()  # as if begun before, so that lanes do not march in step
        turn, end = at + length, at + 2 * length
        yield Leg(at, turn, source, target)
        yield Leg(turn, end, target, source)
        at = end


class Traffic:
    """The legs of all lanes between `machines` machines, drawn as far as asked for. Each machine's
    times of asking must not decrease."""

    def __init__(self, shuffles: int, machines: int, seed: int) -> None:
        self._legs = heapq.merge(*(legs(machines, seed, lane) for lane in range(shuffles)))
        self._next = next(self._legs, None)
        self._coming: list[deque[Leg]] = [deque() for _ in range(machines)]

    def to(self, machine: int, until: float) -> list[Leg]:
        """Return the legs to this machine that start up to `until`, in order, each only once."""
        while (leg := self._next) is not None and leg.start <= until:
            coming = self._coming[leg.target]
            while coming and coming[0].end < leg.start:  # of one that is seldom asked about
                coming.popleft()
            coming.append(leg)
            self._next = next(self._legs)
        coming, found = self._coming[machine], []
        while coming and coming[0].start <= until:
            found.append(coming.popleft())
        return found
