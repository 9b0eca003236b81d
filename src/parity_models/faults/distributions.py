"""How long something takes: constant, drawn, or as it was measured. Times in seconds."""

from math import log
from random import Random
from typing import Annotated

import msgspec

MAX_MEASURED = 100_000
"""Times that an empirical distribution holds at most."""

SLICE = 0.001
"""Units of one worker that begin within the same slice of time get the same drawn times."""

Duration = Annotated[float, msgspec.Meta(ge=0, le=86400)]
Spell = Annotated[float, msgspec.Meta(ge=0.001, le=86400)]


class Constant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="constant"):
    """Always `seconds`."""

    seconds: Duration

    def draw(self, rng: Random) -> float:
        return self.seconds


class Uniform(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="uniform"):
    """Anything from `low` to `high`, alike."""

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
    """One of `seconds`, each as likely as the others: times as they were measured."""

    seconds: Annotated[tuple[Duration, ...], msgspec.Meta(min_length=1, max_length=MAX_MEASURED)]

    def draw(self, rng: Random) -> float:
        return rng.choice(self.seconds)


Distribution = Constant | Uniform | Exponential | LogNormal | Empirical
