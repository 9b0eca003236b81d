"""What serving takes besides what is simulated of it, by a calm run on cores that all share."""

from collections.abc import Callable
from typing import NamedTuple

from parity_models.simulation.cores import Cores, Hog


class Took(NamedTuple):
    """What queries of a calm run took, in ms: at the median, of an instance's time on average, and
    at SHARES (`course.SHARES`)."""

    p50_ms: float
    busy_ms: float
    quantiles_ms: tuple[float, ...]


class Besides(NamedTuple):
    """In ms: how long a unit holds its instance longer, what an answer takes outside of queue and
    instance, as quantiles at SHARES, and what is computed besides units (`Cores`)."""

    held_ms: float
    outside_ms: tuple[float, ...]
    serving_ms: float = 0.0
    unseen_ms: float = 0.0
    unit_ms: float = 0.0

    def cores(self, count: int, hogs: tuple[Hog, ...] = (), *, pinned: bool = False) -> Cores:
        """So many cores, on which that is computed as well."""
        serving, unseen, unit = self.serving_ms / 1e3, self.unseen_ms / 1e3, self.unit_ms / 1e3
        return Cores(count, serving, unseen, unit, pinned=pinned, hogs=hogs)


def besides(
    real: Took, unit: float, serving: float, simulated: Callable[[Besides], Took]
) -> Besides:
    """What a calm run took besides its simulation, which is asked for what it takes with what is
    known so far.

    Workers computed for `unit` ms besides the model's run, server and clients for `serving` ms. Of
    the latter a query waits for as much as it took outside of queue and instance; the rest goes on
    unseen.
    """
    known = Besides(0.0, (), unit_ms=max(0.0, unit))
    bare = simulated(known)
    held = max(0.0, real.busy_ms - bare.busy_ms)
    waited = min(serving, max(0.0, real.p50_ms - bare.p50_ms - held))
    known = known._replace(held_ms=held, serving_ms=waited, unseen_ms=serving - waited)
    pairs = zip(real.quantiles_ms, simulated(known).quantiles_ms, strict=True)
    return known._replace(outside_ms=tuple(sorted(max(0.0, ms - other) for ms, other in pairs)))
