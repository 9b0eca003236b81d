"""The worth of asking a stand-in, or running the model once more, for a query that runs.

A query is late once it is older than a median run time m of the deployed model. A second of
lateness costs URGENCY instance-seconds when the query is one median late, twice as many when it
is two medians late. Of units of age a, a share S(t) / S(a) is still running at age t. An answer at
age b saves

    L(b) = URGENCY * integral from b on of (lateness at t) * S(t) / S(a) dt

A task that takes s and starts now answers its query at a + s if its answer is accepted (with
probability `coverage`); otherwise a copy answers it, one median later:

    saved(a, s) = coverage * L(a + s) + (1 - coverage) * L(a + s + m)

Instance time has a price. A queue grows with the load as load / (1 - load), so a second of
instance time adds 1 / (1 - load)^2 to it, and queries in it are later by 1 / (1 - load), which
makes each second cost them that much more. Every query that waits now, or arrives before the queue
is empty, is delayed by its share: these are waiting / (1 - load). They will be as late as this
query was when it began, after waiting w, plus a median:

    cost(s) = (s + (1 - coverage) * m) * (1 / (1 - load)^3
              + URGENCY * (1 + w / m) * waiting / (1 - load) / instances)

Asking at age a is worth S(a) * (saved - cost) to a unit that begins. A unit is *at risk* from the
age at which that is greatest: earlier, a stand-in is often asked in vain; later, it saves little. A
unit is *late* once even an instantaneous stand-in would be worth its price.
"""

from dataclasses import dataclass
from itertools import chain
from math import inf

from parity_models.scheduling.run_times import RunTimes

URGENCY = 100.0
"""The worth of a second of waiting to a query that is a median run time late, in seconds of an idle
instance. Half and twice as much make hardly a difference."""

FULLEST = 0.99
"""Loads above this count as this load."""


@dataclass(frozen=True)
class Choice:
    """A task that can be sent, and what follows if its answer is refused.

    `work` is the expected instance time in seconds, `answers` the probability of each time in
    seconds until the query is answered.
    """

    work: float
    answers: tuple[tuple[float, float], ...]


class Benefit:
    """The rule above; `median` is the deployed model's. Times in seconds."""

    STEEPNESS = 3
    """The exponent of the price."""

    def __init__(self) -> None:
        self._price = inf
        self._delayed = 1.0
        self.median = 0.0

    def learn(self, median: float, load: float) -> None:
        """Set the median run time and the load."""
        self.median = median
        self._delayed = 1 / (1 - min(load, FULLEST))
        self._price = self._delayed**self.STEEPNESS

    def saved(self, choice: Choice, running: RunTimes, age: float, before: float = 0.0) -> float:
        """Return what a task started now saves for a unit of this age.

        `running` are run times of units like it; the query had waited `before` when it began.
        """
        late_from = self.median - before
        saved = 0.0
        for chance, after in choice.answers:
            left, moment = running.left(age, max(age + after, late_from))
            saved += chance * (moment - late_from * left)
        return URGENCY * saved / self.median

    def cost(self, choice: Choice, waiting: float = 0.0) -> float:
        """Return the cost. `waiting` is the number of waiting queries per instance, each counted
        as many times as it will be medians late."""
        return choice.work * (self._price + URGENCY * waiting * self._delayed)

    def at_risk(
        self, choice: Choice, running: RunTimes, before: float = 0.0, *, early: bool = False
    ) -> tuple[float, float]:
        """Return (worth, age): the best age at which to ask for units like `running`.

        `early`: it may be asked when the unit begins, else only once the first of its kind ended.
        """
        cost = self.cost(choice)
        ages = chain([(0.0, 1.0)] * early, running.ages())
        worth = [
            (longer * (self.saved(choice, running, age, before) - cost), age)
            for age, longer in ages
        ]
        return max([*worth, (0.0, inf)])
