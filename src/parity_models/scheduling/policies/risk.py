"""The rule of the adaptive policy: the age at which to ask, from run times and the load.

Causes of slowness last longer than one unit. So an instance is *slow* if its last unit of the
deployed model was slow (see below). At most a share MAX_SLOW of all instances counts as slow, the
most recent ones: slow instances get work last, and one that gets none could never be fast again.
Run times on slow instances are measured separately. A stand-in may be asked for a query on a slow
instance as soon as its unit begins, and such a unit never gets more time than others. On other
instances no stand-in is asked before the first units have ended; otherwise everything would run
twice where instances are idle and cheap.

The worth of asking a stand-in, or running the model once more: up to the median run time m of the
deployed model, waiting costs a query nothing. At the age 2 m, a second of waiting costs URGENCY
instance-seconds, at 3 m twice as many. Of units of age a, a share S(t) / S(a) is still running at
age t. With lateness(t) = (t - m) / m, an answer at age b saves

    L(b) = URGENCY * integral from b on of lateness(t) * S(t) / S(a) dt

A task that takes s and starts now answers its query at a + s if its answer is accepted (with
probability `coverage`); otherwise a copy answers it, one median later:

    saved(a, s) = coverage * L(a + s) + (1 - coverage) * L(a + s + m)

Instance time has a price. A queue grows with the load as load / (1 - load), so a second of
instance time adds 1 / (1 - load)^2 to it, and queries in it are later by 1 / (1 - load), which
makes each second cost them that much more. Every query that waits now or arrives before the queue
is empty, waiting / (1 - load) in all, waits longer by 1 / instances of the task's time. They begin
after a wait of w, as long as this query's, plus a median:

    cost(s) = (s + (1 - coverage) * m) * (1 / (1 - load)^3
              + URGENCY * (1 + w / m) * waiting / (1 - load) / instances)

Asking at age a is worth S(a) * (saved - cost) to a unit that begins. A query is *late* from the age
of its unit at which that is greatest: earlier, a stand-in is often asked in vain; later, it saves
little. A unit is *slow* once even an instantaneous stand-in would be worth its price.
"""

from collections.abc import Collection, Sized
from dataclasses import dataclass
from itertools import chain
from math import inf

from parity_models.roles import BACKUP, DEPLOYED, parity_role
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Query, Task, Unit

PARITY = parity_role(0)
"""Represents the roles of all rows of a code."""

SLOW = "slow"
"""Represents the deployed model on slow instances."""

BEYOND = 1.02
"""A unit that has run this many times as long as the longest known one makes its query late in any
case. By chance this happens to one of 1,000 units at most."""

MAX_SLOW = 2 / 3
"""The largest share of instances that count as slow. With more, too few instances are left for
redundant work in a fleet of two hardware generations. With half, the slower generation takes all
places, and instances slowed down by transfers are not counted."""

MARGIN = 0.1
"""Added to the age by which help has arrived, in median run times, as half of all answers take
longer than their median."""

RENEWED_AFTER = 0.1
"""Estimates are renewed at most once in this many seconds: a renewal costs as much as some queries.
"""

PREFER_COPY = 0.9
"""A copy is preferred to a stand-in that takes at least this share of its time: the copy's answer
is the deployed model's own."""

URGENCY = 100.0
"""The cost of a second of waiting to a query of two median run times, in seconds of an idle
instance. Half or twice as much makes hardly any difference."""

MAX_LOAD = 0.99
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
        self._delayed = 1 / (1 - min(load, MAX_LOAD))
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
        """Return the cost. `waiting` is the number of waiting queries per instance, each weighted
        by the medians that it will be late."""
        return choice.work * (self._price + URGENCY * waiting * self._delayed)

    def best_age(
        self, choice: Choice, running: RunTimes, before: float = 0.0, *, early: bool = False
    ) -> tuple[float, float]:
        """Return (worth, age): the best age at which to ask for units like `running`.

        `early`: one may ask when the unit begins, not only at the age of the shortest known unit.
        """
        cost = self.cost(choice)
        ages = chain([(0.0, 1.0)] * early, running.ages())
        worth = [
            (longer * (self.saved(choice, running, age, before) - cost), age)
            for age, longer in ages
        ]
        return max([*worth, (0.0, inf)])


NEWEST = 0.02
"""The weight of the newest answer in the share accepted."""

PRESUMED_TIME = 0.5
"""A stand-in's presumed run time until it is measured, in medians of the deployed model."""

FORGOTTEN = 5000
"""The estimates of a stand-in are reset after this many units of the deployed model without a use,
so one that did badly for a while is tried again."""


class StandIn:
    """The estimates of one stand-in; `deployed` are the run times of the deployed model.

    `accepted` is the share of its answers that are accepted. Times in seconds.
    """

    def __init__(self, deployed: RunTimes) -> None:
        self._deployed = deployed
        self._forget()

    @property
    def run_times(self) -> RunTimes:
        """Its run times, or the deployed model's until they are known."""
        return self._deployed if self._own.median is None else self._own

    @property
    def is_measured(self) -> bool:
        """True if enough of its units have run lately."""
        return self._own.median is not None

    @property
    def takes(self) -> float:
        """The median run time, presumed until measured; 0 while the deployed model's is unknown."""
        return self._own.median or PRESUMED_TIME * (self._deployed.median or 0.0)

    def ran(self, seconds: float, *, finished: bool) -> None:
        """Record the run time of a unit, which ran to its end or not."""
        self._unasked = 0
        self._own.add(seconds, finished=finished)

    def answered(self, *, usable: bool) -> None:
        """Record whether its answer was accepted."""
        self.accepted += NEWEST * (usable - self.accepted)

    def not_asked(self, units: int) -> None:
        """Record that the deployed model has run this many more units."""
        self._unasked += units
        if self._unasked >= FORGOTTEN:
            self._forget()

    def _forget(self) -> None:
        self._own = RunTimes(window=300, every=20)
        self._unasked = 0
        self.accepted = 1.0


class Risk:
    """Measure run times and the load, and apply the rule to them.

    `run_times` are those of the deployed model, `stand_ins` the roles that may be asked, for this
    `share` of queries at most. Times in seconds.
    """

    NEWEST = 0.2
    """The weight of the newest measurement of the load."""

    def __init__(self, run_times: RunTimes, stand_ins: Collection[str], share: float) -> None:
        self._share = share
        self.benefit = Benefit()
        self.stand_ins = {role: StandIn(run_times) for role in stand_ins}
        self.helped_by = 0.0
        """The age by which a stand-in asked in time has answered; 0 while that is unknown."""
        self.slow_from = 0.0
        """The age from which a unit of the deployed model is slow; 0 while that is unknown."""
        self.late_from = 0.0
        """The age from which queries that stand-ins may answer are late, on instances that are not
        slow; 0 while that is unknown."""
        self.slow: dict[str, None] = {}
        """The instances whose last unit of the deployed model was slow, the newest last. They get
        no redundant work while others are up."""
        self._run_times = run_times
        self._measured = {role: StandIn(run_times) for role in (DEPLOYED, SLOW)} | self.stand_ins
        self._ages: dict[tuple[str, bool], float] = {}
        self._busy, self._since, self._load = 0.0, 0.0, 0.0
        self._renew_from = -inf
        self._decide()

    def age(self, query: Query, task: Task) -> float | None:
        """Return the age of this task from which its query is late; None while that is unknown."""
        return self._ages.get((self._kind(query, task), query.exact))

    def choice(self, role: str, rows: int = 1) -> Choice:
        """Return the choice of asking this stand-in, with this many parity queries, or the deployed
        model for a copy."""
        median = self.benefit.median
        if role == DEPLOYED:
            return Choice(median, ((1.0, PREFER_COPY * median),))
        takes, accepted = self.stand_ins[role].takes, self.stand_ins[role].accepted
        refused = 1 - accepted
        work = rows * takes + refused * median
        return Choice(work, ((accepted, takes), (refused, takes + median)))

    def saved(self, now: float, choice: Choice, query: Query, newest: Task) -> float:
        """Return the worth of what a choice saves; `newest` is the newest running task."""
        assert newest.unit is not None
        began, kind = newest.unit.started, self._kind(query, newest)
        kinds = {DEPLOYED, SLOW} if kind == SLOW else {kind}
        known = [self._measured[each].run_times for each in kinds]
        age, before = now - began, began - query.arrived
        return max(self.benefit.saved(choice, each, age, before) for each in known)

    def ended(
        self, now: float, unit: Unit, *, finished: bool, instances: Sized, max_batch: int
    ) -> None:
        """Record that one of the `instances` has run this unit, to its end or not; a full one holds
        `max_batch` tasks."""
        took = unit.took
        self._busy += took * len(unit.tasks) / max_batch
        if unit.role != DEPLOYED:
            self._measured[measured(unit.role)].ran(took, finished=finished)
            self._measure_help()
            return
        if unit.instance in self.slow:
            self._measured[SLOW].ran(took, finished=finished)
        if 0 < self.slow_from < took:
            self.slow.pop(unit.instance, None)
            self.slow[unit.instance] = None
            while len(self.slow) > MAX_SLOW * len(instances):
                del self.slow[next(iter(self.slow))]
        elif finished:
            self.slow.pop(unit.instance, None)
        renew = now >= self._renew_from
        if self._run_times.add(took, finished=finished, renew=renew):
            self._renew_from = now + RENEWED_AFTER
            self._measure_load(now, len(instances))
            for each in self._measured.values():
                each.not_asked(self._run_times.added)
            self._decide()

    def _measure_load(self, now: float, instances: int) -> None:
        capacity = (now - self._since) * instances
        if capacity > 0:
            self._load += self.NEWEST * (min(1.0, self._busy / capacity) - self._load)
        self._busy, self._since = 0.0, now

    def _decide(self) -> None:
        if not self._run_times.median:
            return
        self.benefit.learn(self._run_times.median, self._load)
        choices = [self.choice(role) for role in (DEPLOYED, *self.stand_ins)]
        takes = [each.takes for each in self.stand_ins.values()]
        least = min([self.benefit.median, *takes])
        self.slow_from = self._earliest([Choice(least, ((1.0, 0.0),))], DEPLOYED)
        for kind in self._measured:
            self._ages[kind, False] = self._earliest(choices, kind)
            self._ages[kind, True] = self._earliest(choices[:1], kind)
        self.late_from = self._ages[DEPLOYED, False]
        self._measure_help()

    def _measure_help(self) -> None:
        takes = [each.takes for each in self.stand_ins.values() if each.is_measured]
        median = self.benefit.median
        age = self._ages.get((DEPLOYED, False), 0.0)
        self.helped_by = age + min([median, *takes]) + MARGIN * median

    def _earliest(self, choices: Collection[Choice], kind: str) -> float:
        """Return the age at which to ask the best of these for units of this kind."""
        running = self._measured[kind].run_times
        before = self._ages[DEPLOYED, False] if kind in self.stand_ins else 0.0
        early = kind == SLOW
        worth = [self.benefit.best_age(each, running, before, early=early) for each in choices]
        at = min(max(worth)[1], BEYOND * running.longest)
        if not early:  # only for the longest units, as there is a budget
            at = max(at, running.exceeded_by(self._share))
        return min(at, self._earliest(choices, DEPLOYED)) if early else at

    def _kind(self, query: Query, task: Task) -> str:
        """Return the role whose run times apply to this task; a copy never has the role SLOW."""
        if task is query.original:
            return SLOW if task.unit and task.instance in self.slow else DEPLOYED
        return measured(task.role)


def measured(role: str) -> str:
    """Return the role whose measurements apply to this one."""
    return role if role in (DEPLOYED, BACKUP) else PARITY
