"""From which ages on units are at risk, by what is measured of each role, and the load.

What makes an instance slow lasts for longer than one unit. So an instance is *slow* if its last
unit of the deployed model was late. At most a share SLOWEST of all instances counts as slow, those
that were late most recently: slow instances are given work last, and one that is given none could
never be on time again. Run times on slow instances are measured apart. A stand-in may be asked for
a query on a slow instance as soon as its unit begins; at no age is such a unit trusted more than
others. On other instances no stand-in is asked before the first units have ended: where instances
are idle and cheap, everything would be run twice.
"""

from collections.abc import Collection
from itertools import pairwise

from parity_models.scheduling.actions import BACKUPS, DEPLOYED, parity_role
from parity_models.scheduling.policies.benefit import Benefit, Choice
from parity_models.scheduling.policies.stand_in import StandIn
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Query, Task, Unit

PARITY = parity_role(0)
"""Stands for the roles of all rows of a code."""

SLOW = "slow"
"""Stands for the deployed model on slow instances."""

BEYOND = 1.02
"""A unit that has run this many times as long as the longest known one is at risk, even if no known
unit was worth asking for. By chance this happens to one of 1,000 units at most."""

SLOWEST = 2 / 3
"""The largest share of instances that count as slow. With more, in a fleet of two generations of
hardware, too few instances are left for redundant work. With half, the slower generation takes all
places, and instances that transfers slow down are not counted."""

EXACT = 0.9
"""A copy is sent instead of a stand-in whose time is this share of the copy's, or more: the copy's
answer is the deployed model's own."""


class Risk:
    """Measures what runs, and applies the rule of benefit.py to it, with this `urgency`.

    `run_times` are those of the deployed model, `stand_ins` the roles that may be asked besides,
    for the share `budget` of queries. Times in seconds.
    """

    RULE = Benefit
    """What it is worth to ask."""

    NEWEST = 0.2
    """The weight in the load of what is new whenever estimates are renewed."""

    def __init__(
        self,
        urgency: float,
        run_times: RunTimes,
        stand_ins: Collection[str],
        budget: float,
    ) -> None:
        self.budget = budget
        self.benefit = self.RULE(urgency)
        self.stand_ins = {role: StandIn(run_times) for role in stand_ins}
        self.late = 0.0
        """The age from which on a unit of the deployed model is late; 0 while that is unknown."""
        self.slow: dict[str, None] = {}
        """The instances on which the last unit of the deployed model was late, the newest last."""
        self._better = dict(pairwise(role for role in stand_ins if role != PARITY))
        self._run_times = run_times
        self._measured = {role: StandIn(run_times) for role in (DEPLOYED, SLOW)} | self.stand_ins
        self._ages: dict[tuple[str, bool], float] = {}
        self._busy, self._since, self._load = 0.0, 0.0, 0.0
        self._decide()

    def age(self, query: Query, task: Task) -> float | None:
        """From which age on this task of the query is at risk; None while that is unknown."""
        return self._ages.get((self._kind(query, task), query.exact or query.exact_only))

    @property
    def avoided(self) -> Collection[str]:
        """The instances that nothing is sent to, as long as others are up."""
        return self.slow

    @property
    def helped_by(self) -> float:
        """The age by which what was asked for in time has answered; 0 while that is unknown."""
        takes = [each.takes for each in self.stand_ins.values() if each.is_measured]
        return self._ages.get((DEPLOYED, False), 0.0) + min([self.benefit.median, *takes])

    def given(self, began: float) -> float:
        """From which time on a backup answers a query whose original began then: once it is
        late."""
        return began + self.late

    def choice(self, role: str, rows: int = 1, *, again: bool = False) -> Choice:
        """To ask this stand-in, with so many parity queries, `again` where another one was refused,
        or the deployed model once more."""
        median = self.benefit.median
        if role == DEPLOYED:
            return Choice(median, ((1.0, EXACT * median),))
        stand_in, better = self.stand_ins[role], self._better.get(role)
        then = self.choice(better, again=True) if better else Choice(median, ((1.0, median),))
        takes, refused = stand_in.takes, 1 - stand_in.accepted[again]
        later = [(refused * chance, takes + after) for chance, after in then.answers]
        work = rows * takes + refused * then.work
        return Choice(work, ((stand_in.accepted[again], takes), *later))

    def saved(self, port: Port, choice: Choice, query: Query, newest: Task | None) -> float:
        """What is saved of the query's waiting, whose newest task that runs is this one."""
        began = query.arrived if newest is None or newest.unit is None else newest.unit.started
        kind = DEPLOYED if newest is None else self._kind(query, newest)
        kinds = {DEPLOYED, SLOW} if kind == SLOW else {kind}
        known = [self._measured[each].run_times for each in kinds]
        now, before = port.now - began, began - query.arrived
        return max(self.benefit.saved(choice, each, now, before) for each in known)

    def ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        """An instance has run this unit, to its end or not."""
        took = unit.took
        self._busy += took
        if unit.role != DEPLOYED:
            self._measured[measured(unit.role)].ran(took, finished=finished)
            return
        if unit.instance in self.slow:
            self._measured[SLOW].ran(took, finished=finished)
        if 0 < self.late < took:
            self.slow.pop(unit.instance, None)
            self.slow[unit.instance] = None
            while len(self.slow) > SLOWEST * port.up(DEPLOYED):
                del self.slow[next(iter(self.slow))]
        elif finished:
            self.slow.pop(unit.instance, None)
        if self._run_times.add(took, finished=finished):
            self._learn(port)

    def _learn(self, port: Port) -> None:
        """The run times are known anew, and so is the load."""
        capacity = (port.now - self._since) * port.up(DEPLOYED)
        if capacity > 0:
            self._load += self.NEWEST * (min(1.0, self._busy / capacity) - self._load)
        self._busy, self._since = 0.0, port.now
        for each in self._measured.values():
            each.not_asked(self._run_times.every)
        self._decide()

    def _decide(self) -> None:
        if not self._run_times.median:
            return
        self.benefit.learn(self._run_times.median, self._load)
        choices = [self.choice(role) for role in (DEPLOYED, *self.stand_ins)]
        takes = [each.takes for each in self.stand_ins.values()]
        least = min([self.benefit.median, *takes])
        self.late = self._earliest([Choice(least, ((1.0, 0.0),))], DEPLOYED)
        for kind in self._measured:
            self._ages[kind, False] = self._earliest(choices, kind)
            self._ages[kind, True] = self._earliest(choices[:1], kind)

    def _earliest(self, choices: Collection[Choice], kind: str) -> float:
        """From which age on the best of these is to be asked for, of units of this kind."""
        running = self._measured[kind].run_times
        before = self._ages[DEPLOYED, False] if kind in self.stand_ins else 0.0
        early = kind == SLOW
        worth = [self.benefit.at_risk(each, running, before, early=early) for each in choices]
        at = min(max(worth)[1], BEYOND * running.longest)
        if not early:  # those that need it most, as there is a budget
            at = max(at, running.exceeded_by(self.budget))
        return min(at, self._earliest(choices, DEPLOYED)) if early else at

    def _kind(self, query: Query, task: Task) -> str:
        """What runs like this task; a copy on a slow instance is given the time of any."""
        slow = task is query.original and task.unit and task.unit.instance in self.slow
        return SLOW if slow else measured(task.role)


def measured(role: str) -> str:
    """The role whose measures this one has."""
    return role if role == DEPLOYED or role in BACKUPS else PARITY
