"""How much of the spare work may run, so that it does not slow originals down.

Instances that share cores, memory or a link are never quite spare: what one runs slows the others
down (performance interference: Mars et al., Bubble-Up, MICRO 2011; Zhang et al., CPI², EuroSys
2013). Nothing says so but the run times of originals. The median of those that ran while no
redundant work did is what originals take undisturbed: nothing spare runs until that is known. While
half of all originals take hardly longer, more and more of the spare work may run, up to all of it;
while more than half do, less and less.

So where everything has become slower for another reason, less spare work runs until originals have
run alone often enough to tell. Where they have not run alone for long, it is learned anew.
"""

from parity_models.scheduling.recent import RecentDurations
from parity_models.scheduling.work import Task, Unit

LIMIT, WIDE = 1.05, 0.6
"""How long half of all originals may take, in medians of those that run alone; where run times vary
much, as long as this share of those at most take."""

STEP = 0.02
"""By how much one original changes the share of spare work."""

FORGOTTEN = 20_000
"""After how many originals, of which none ran alone, it is no longer known how long they take."""

MOST = 1.3
"""The most that the share grows to: beyond 1 it makes no difference but that chance, of which
there is some in every run time, does not lower it below 1."""


class Interference:
    """The share of spare work that may run, as the run times of originals tell; in seconds."""

    def __init__(self) -> None:
        self._redundant: set[Task] = set()
        self._calm_since = 0.0
        self._saved = 0.0
        self._alone = _alone()
        self._since_alone = 0
        self._share = 0.0

    def allows(self) -> bool:
        """May the next piece of spare work run?"""
        self._saved += min(1.0, self._share)
        if self._saved < 1:
            return False
        self._saved -= 1
        return True

    def starts(self, task: Task) -> None:
        """A task of redundant work is about to run."""
        self._redundant.add(task)

    def ended(self, now: float, unit: Unit, *, finished: bool) -> None:
        """An instance has run this unit, to its end or not."""
        if not self._redundant.isdisjoint(unit.tasks):
            self._redundant.difference_update(unit.tasks)
            if not self._redundant:
                self._calm_since = now
            return
        took = now - unit.started
        self._since_alone += 1
        if finished and not self._redundant and self._calm_since <= unit.started:
            self._since_alone = 0
            self._alone.add(took)
        elif self._since_alone > FORGOTTEN:
            self._since_alone, self._share = 0, 0.0
            self._alone = _alone()
        median, most = self._alone.quantile(0.5), self._alone.quantile(WIDE)
        if median is None or most is None:
            return
        longer = took > max(LIMIT * median, most)
        if longer or finished:
            step = -STEP if longer else STEP
            self._share = min(MOST, max(0.0, self._share + step))


def _alone() -> RecentDurations:
    return RecentDurations(window=100, every=20)
