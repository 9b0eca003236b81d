"""What it is worth to ask a stand-in for a query that runs, or for another run of the model.

A query's lateness counts from a median run time of the deployed model on. What a second of it costs
grows with it: `urgency` instance-seconds where the query is one median late, twice as many where it
is two. Of units that have run for the `age` a, S(t) / S(a) are still running at the age t. A query
that is answered at the age b saves

    L(b) = urgency * integral from b on of (lateness at t) * S(t) / S(a) dt

A task that takes s and is started now answers its query at a + s, if its answer may be given (its
`coverage`); else a copy does, one median m later:

    saved(a, s) = coverage * L(a + s) + (1 - coverage) * L(a + s + m)

Where a better backup comes after it, that is asked in place of the copy, and what is saved is
(1 - coverage) times as much as that would save at a + s, and its cost comes to the cost likewise.

Instance time has a price. A queue grows with the load as load / (1 - load) does, so a second of
instance time adds 1 / (1 - load)^2 to it; and those that wait there are later by 1 / (1 - load),
so that each second costs them so much more. And each query that waits now, or comes before no
query waits any more, is delayed by its share of it: waiting / (1 - load) are these. They will be
as late as this one was when it began, after the time w, and a median:

    cost(s) = (s + (1 - coverage) * m) * (1 / (1 - load)^3
              + urgency * (1 + w / m) * waiting / (1 - load) / instances)

To ask at the age a is worth S(a) * (saved - cost) to a unit that begins. A unit is *at risk* from
the age on at which that is greatest: asked before, a stand-in is paid for in vain too often, asked
later, it comes too late. It is *late* from the age on at which one would be asked for, at this
price, that answered at once.
"""

from dataclasses import dataclass
from itertools import chain
from math import inf

from parity_models.scheduling.run_times import RunTimes

FULLEST = 0.99
"""The highest load that is told from overload."""


@dataclass(frozen=True)
class Choice:
    """Something that can be asked for, and what follows where its answer may not be given.

    `work`: the instance-seconds that this is expected to take. `answers`: the chance of each time,
    in seconds, after which the query is answered.
    """

    work: float
    answers: tuple[tuple[float, float], ...]


class Benefit:
    """The rule above; `median` is the deployed model's median run time. Times in seconds."""

    STEEPNESS = 3
    """Of the price, as the load rises."""

    def __init__(self, urgency: float) -> None:
        self._urgency = urgency
        self._price = inf
        self._delayed = 1.0
        self.median = 0.0

    def learn(self, median: float, load: float) -> None:
        """What it follows from is new."""
        self.median = median
        self._delayed = 1 / (1 - min(load, FULLEST))
        self._price = self._delayed**self.STEEPNESS

    def saved(self, choice: Choice, running: RunTimes, age: float, before: float = 0.0) -> float:
        """What a task started now saves a query whose unit, one like `running`, is of this age.

        The query had waited for `before` when its unit began.
        """
        late_from = self.median - before
        saved = 0.0
        for chance, after in choice.answers:
            left, moment = running.left(age, max(age + after, late_from))
            saved += chance * (moment - late_from * left)
        return self._urgency * saved / self.median

    def cost(self, choice: Choice, waiting: float = 0.0) -> float:
        """What it costs; `waiting` are the queries that wait, for each instance, and each as many
        times as it will be medians late."""
        return choice.work * (self._price + self._urgency * waiting * self._delayed)

    def at_risk(
        self, choice: Choice, running: RunTimes, before: float = 0.0, *, early: bool = False
    ) -> tuple[float, float]:
        """(what asking then is worth, the age from which on to ask) of a unit like `running`.

        `early`: it may be asked for as it begins, else once the first of its kind have ended.
        """
        cost = self.cost(choice)
        ages = chain([(0.0, 1.0)] * early, running.ages())
        worth = [
            (longer * (self.saved(choice, running, age, before) - cost), age)
            for age, longer in ages
        ]
        return max([*worth, (0.0, inf)])
