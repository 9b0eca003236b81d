"""Distributions of durations, and random draws from them. Times in seconds."""

from hashlib import sha256
from math import log
from random import Random
from typing import Annotated

import msgspec

MAX_MEASURED = 100_000
"""The most times in an empirical distribution."""

SLICE = 0.001
"""Units of one worker that begin within the same slice of time draw the same times."""

Duration = Annotated[float, msgspec.Meta(ge=0, le=86400)]
Spell = Annotated[float, msgspec.Meta(ge=0.001, le=86400)]


class Constant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="constant"):
    """Always `seconds`."""

    seconds: Duration

    def draw(self, rng: Random) -> float:
        return self.seconds


class Uniform(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="uniform"):
    """Uniform between `low` and `high`."""

    low: Duration
    high: Duration

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) must not be above high ({self.high})")

    def draw(self, rng: Random) -> float:
        return rng.uniform(self.low, self.high)


class Exponential(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="exponential"):
    """Memoryless, with this mean."""

    mean: Duration

    def draw(self, rng: Random) -> float:
        return self.mean * rng.expovariate(1.0)


class LogNormal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="lognormal"):
    """Half below `median`; `sigma` is the standard deviation of the logarithm."""

    median: Spell
    sigma: Annotated[float, msgspec.Meta(ge=0, le=5)]

    def draw(self, rng: Random) -> float:
        return rng.lognormvariate(log(self.median), self.sigma)


class Empirical(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="empirical"):
    """One of the measured `seconds`, each equally likely."""

    seconds: Annotated[tuple[Duration, ...], msgspec.Meta(min_length=1, max_length=MAX_MEASURED)]

    def draw(self, rng: Random) -> float:
        return rng.choice(self.seconds)


Distribution = Constant | Uniform | Exponential | LogNormal | Empirical


class Spells:
    """Alternating gaps and spells from time 0 on. Times of calls must not decrease."""

    def __init__(self, rng: Random, gap: Distribution, length: Distribution) -> None:
        self._rng = rng
        self._gap = gap
        self._length = length
        self._start = self._stop = 0.0

    def after(self, time: float) -> tuple[float, float]:
        """Return the start and the end of the first spell that ends after `time`."""
        while self._stop <= time:
            self._start = self._stop + self._gap.draw(self._rng)
            self._stop = self._start + self._length.draw(self._rng)
        return self._start, self._stop


_MASK = 2**64 - 1
_STEP = 0x9E3779B97F4A7C15
"""The golden ratio, as an odd number, as in SplitMix64."""


class SlicedRandom(Random):
    """Random numbers by slice of time, the same in every process for a `seed`.

    A Mersenne Twister takes 20 µs to seed and 2.5 kB of state. SplitMix64 (Steele, Lea and Flood,
    Fast Splittable Pseudorandom Number Generators, OOPSLA 2014) has 8 bytes of state.
    """

    def __init__(self, seed: str) -> None:
        super().__init__(0)
        self._key = int.from_bytes(sha256(seed.encode()).digest()[:8], "little")
        self._state = 0
        self.begin(0)

    def begin(self, number: int) -> None:
        """Continue with the first number of this slice."""
        self._state = _mix(self._key + number * _STEP)
        self.gauss_next = None  # of the slice before

    def random(self) -> float:
        """Return a number of 0 or more and below 1, in steps of 2^-53."""
        self._state = (self._state + _STEP) & _MASK
        return (_mix(self._state) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
