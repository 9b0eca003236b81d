"""How much of the idle capacity is spare: what redundant work may use and slow no original down.

Instances that share cores, memory or a link are never quite spare: what one runs slows the others
down (performance interference: Mars et al., Bubble-Up, MICRO 2011; Zhang et al., CPI², EuroSys
2013). Nothing says so but the run times of originals. The median of those that ran while no
redundant work did is what originals take undisturbed. Each original that takes hardly longer raises
the spare share by a step, up to 1; each that takes longer lowers it. So it rises while more than
half take hardly longer, and falls while more than half do. The price of instance time is divided
by it (benefit.py).

Until it is known what originals take undisturbed, the least is spare. Where everything has become
slower for another reason, redundant work is dear until originals have run alone often enough to
tell; redundant work that is dear lets them run alone.
"""

from parity_models.scheduling.recent import RecentDurations
from parity_models.scheduling.work import Task, Unit

LIMIT, WIDE = 1.05, 0.6
"""How long half of all originals may take, in medians of those that run alone; where run times vary
much, as long as this share of those at most take."""

STEP = 0.02
"""By how much one original changes the spare share."""

LEAST = 0.02
"""The least that is spare: what hangs is worth a copy though it slows others down."""

MOST = 1.3
"""The most that the share grows to: beyond 1 it makes no difference but that chance, of which
there is some in every run time, does not lower it below 1."""


class Interference:
    """The share of idle capacity that is spare, by the run times of originals; in seconds."""

    def __init__(self) -> None:
        self._redundant: set[Task] = set()
        self._calm_since = 0.0
        self._alone = RecentDurations(window=100, every=20)
        self._limit: float | None = None
        self._share = 0.0

    @property
    def spare(self) -> float:
        """The spare share, from LEAST to 1."""
        return min(1.0, max(LEAST, self._share))

    def starts(self, task: Task) -> None:
        """A task of redundant work is about to run."""
        self._redundant.add(task)

    def ended(self, now: float, unit: Unit, *, finished: bool) -> None:
        """An instance has run this unit, to its end or not."""
        if self._redundant and not self._redundant.isdisjoint(unit.tasks):
            self._redundant.difference_update(unit.tasks)
            if not self._redundant:
                self._calm_since = now
            return
        took = now - unit.started
        alone = finished and not self._redundant and self._calm_since <= unit.started
        if alone and self._alone.add(took):
            median, most = self._alone.quantile(0.5) or 0.0, self._alone.quantile(WIDE) or 0.0
            self._limit = max(LIMIT * median, most)
        if self._limit is None:
            return
        longer = took > self._limit
        if longer or finished:
            step = -STEP if longer else STEP
            self._share = min(MOST, max(0.0, self._share + step))
