"""How much of the idle capacity is spare: what redundant work may use without slowing originals.

Instances that share cores, memory or a link are never quite spare: what one runs slows the others
down (performance interference: Mars et al., Bubble-Up, MICRO 2011; Zhang et al., CPI², EuroSys
2013). Only the run times of originals show it. The median of those that ran while no redundant work
ran is the *undisturbed* time. Each original that stays within a limit near that time raises the
spare share by a step, up to 1; each that exceeds the limit lowers it by a step. The price of
instance time is divided by the spare share (benefit.py).

Until the undisturbed time is known, the spare share is the least. If everything becomes slower for
another reason, redundant work is dear at first. Little of it is then sent, so originals run alone,
and the undisturbed time is learned anew.
"""

from parity_models.scheduling.recent import RecentDurations
from parity_models.scheduling.work import Task, Unit

LIMIT, WIDE = 1.05, 0.6
"""The limit for an original: LIMIT medians of those that ran alone, or their quantile WIDE if that
is longer, as where run times vary much."""

STEP = 0.02
"""The change of the spare share for each original."""

LEAST = 0.02
"""The smallest spare share: a hung query is worth a copy even if the copy slows others down."""

MOST = 1.3
"""The largest value that the share is counted up to. Values above 1 mean 1; they are a reserve, so
that a few run times that are long by chance do not lower the share below 1."""


class Interference:
    """Learns the share of idle capacity that is spare from run times of originals, in seconds."""

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
