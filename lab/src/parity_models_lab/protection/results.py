"""What `parm protect` said, how long it took, and what real runs did of what it simulated."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from parity_models.protection.in_place import InPlace
from parity_models.protection.simulated import Scene


class StandIn(msgspec.Struct, frozen=True):
    """A stand-in that was found: `share` is its time as a share of the model's. `accuracy` is None
    where there are no labels."""

    name: str
    share: float
    agreement: float
    accuracy: float | None
    covered: float


class Latencies(msgspec.Struct, frozen=True):
    """Of answers, in ms: some percentiles. A stand-in gave a share `stood_in` of them."""

    p50_ms: float
    p99_ms: float
    p999_ms: float
    stood_in: float


class Simulated(Latencies, frozen=True):
    """A plan, simulated."""

    name: str
    extra_work: float
    urgency: float | None


class Found(msgspec.Struct, frozen=True):
    """What `parm protect --json` writes, as far as it matters here."""

    model_ms: dict[str, float]
    model_accuracy: float | None
    served: InPlace | None
    finalists: tuple[StandIn, ...]
    test_queries: int
    scene: Scene
    plans: tuple[Simulated, ...]
    recommended: str

    def plan(self, name: str) -> Simulated:
        return next(plan for plan in self.plans if plan.name == name)


def latencies_of(ms: NDArray[np.float64], stood_in: float) -> Latencies:
    """Those of answers that took so many `ms` (n,)."""
    p50, p99, p999 = np.quantile(ms, (0.5, 0.99, 0.999)).tolist()
    return Latencies(p50, p99, p999, stood_in)


class Search(msgspec.Struct, frozen=True):
    """A run of `parm protect`, which was to take so many `minutes` and took so many `seconds`.

    `found` None: it ended without a stand-in.
    """

    minutes: float
    seconds: float
    found: Found | None


class Real(Latencies, frozen=True):
    """A plan, run for real with so many `queries` counted; `failures` says how many of these had
    no answer, by what kept them from it."""

    queries: int
    failures: dict[str, int] = {}

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


class Tails(msgspec.Struct, frozen=True):
    """Real runs by plan, in the scene of the search."""

    runs: dict[str, Real]


class Proof(msgspec.Struct, frozen=True):
    """All that was measured of one model. `date` says when, `load` how many processes wanted to run
    on the machine before it began and when it was over (its load average)."""

    subject: str
    agreement: float
    date: str
    load: tuple[float, float]
    search: Search
    tails: Tails | None = None
