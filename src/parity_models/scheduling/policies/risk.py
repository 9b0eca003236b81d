"""From which ages on units are at risk, by what is measured of each role, and the load.

What makes instances slow lasts for longer than a unit. So an instance is *slow* while the last unit
of the deployed model that it ran was late. Originals on slow instances have run times of their own,
and may be asked for as they begin; they are trusted no more than others at any age. (On others, no
unit is asked for before the first have ended: else, where instances are idle and cheap, everything
would be run twice.)
"""

from collections.abc import Collection
from math import inf

from parity_models.scheduling.actions import BACKUP, DEPLOYED, parity_role
from parity_models.scheduling.policies.benefit import Benefit, Choice
from parity_models.scheduling.policies.interference import Interference
from parity_models.scheduling.policies.stand_in import StandIn
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Query, Task, Unit

PARITY = parity_role(0)
"""Stands for the roles of all rows of a code."""

SLOW = "slow"
"""Stands for the deployed model on slow instances."""

BEYOND = 1.02
"""A unit that has run so many times as long as any that is known is like none of them, and at risk
though none was worth asking for: of 1,000 units, one at most does by chance."""

EXACT = 0.9
"""A copy is sent rather than a stand-in that takes so much of its time or more: its answer is the
deployed model's own."""


class Risk:
    """Measures what runs, and applies the rule `benefit` to it.

    `run_times` are those of the deployed model, `stand_ins` the roles that may be asked besides;
    a parity query has so many `places`. With the weight `newest`, the load follows what is new
    whenever estimates are renewed. Times in seconds.
    """

    def __init__(
        self,
        benefit: Benefit,
        run_times: RunTimes,
        interference: Interference,
        stand_ins: Collection[str],
        places: int,
        newest: float,
    ) -> None:
        self.benefit = benefit
        self.stand_ins = {role: StandIn(run_times) for role in stand_ins}
        self.late = 0.0
        """The age from which on a unit of the deployed model is late; 0 while that is unknown."""
        self.worth_a_place = inf
        """The age from which on a unit is worth a place in a parity query."""
        self.slow: set[str] = set()
        """The instances on which the last unit of the deployed model was late."""
        self._run_times = run_times
        self._on_slow = StandIn(run_times)
        self._interference = interference
        self._places = places
        self._newest = newest
        self._ages: dict[tuple[str, bool], float] = {}
        self._busy, self._since, self._load = 0.0, 0.0, 0.0
        self._decide()

    def age(self, query: Query, task: Task) -> float | None:
        """From which age on this task of the query is at risk; None while that is unknown."""
        return self._ages.get((self._kind(query, task), query.exact or query.spoiled))

    def copy(self) -> Choice:
        """To run the deployed model once more."""
        return Choice(EXACT * self.benefit.median, self.benefit.median)

    def choice(self, role: str) -> Choice:
        """To ask this stand-in."""
        stand_in = self.stand_ins[role]
        return Choice(stand_in.takes, stand_in.takes, stand_in.coverage)

    def saved(self, port: Port, choice: Choice, query: Query, newest: Task | None) -> float:
        """What is saved of the query's waiting, whose newest task that runs is this one."""
        began = query.arrived if newest is None or newest.unit is None else newest.unit.started
        kind = DEPLOYED if newest is None else self._kind(query, newest)
        known = [self._run_times, self._running(kind)] if kind == SLOW else [self._running(kind)]
        now, before = port.now - began, began - query.arrived
        return max(self.benefit.saved(choice, running, now, before) for running in known)

    def ended(self, port: Port, unit: Unit, *, finished: bool) -> None:
        """An instance has run this unit, to its end or not."""
        took = port.now - unit.started
        self._busy += took
        self._interference.ended(port.now, unit, finished=finished)
        if unit.role != DEPLOYED:
            self.stand_ins[_measured(unit.role)].ran(took, finished=finished)
            return
        if unit.instance in self.slow:
            self._on_slow.ran(took, finished=finished)
        if 0 < self.late < took:
            self.slow.add(unit.instance)
            if len(self.slow) > port.up(DEPLOYED):
                self.slow.intersection_update((unit.instance,))  # some of the others are gone
        elif finished:
            self.slow.discard(unit.instance)
        if self._run_times.add(took, finished=finished):
            self._learn(port)

    def _learn(self, port: Port) -> None:
        """The run times are known anew, and so is the load."""
        capacity = (port.now - self._since) * port.up(DEPLOYED)
        if capacity > 0:
            self._load += self._newest * (min(1.0, self._busy / capacity) - self._load)
        self._busy, self._since = 0.0, port.now
        for stand_in in self.stand_ins.values():
            stand_in.not_asked(self._run_times.every)
        self._decide()

    def _decide(self) -> None:
        median = self._run_times.median
        if not median:
            return
        self.benefit.learn(median, self._load, self._interference.spare)
        choices = [self.copy(), *map(self.choice, self.stand_ins)]
        at_once = [Choice(0.0, choice.cost) for choice in choices]
        self.late = self._earliest(self._worth(at_once, DEPLOYED), DEPLOYED)
        for kind in (DEPLOYED, SLOW, *self.stand_ins):
            worth = self._worth(choices, kind)
            self._ages[kind, False] = self._earliest(worth, kind)
            self._ages[kind, True] = self._earliest(worth[:1], kind)
        for exact in (False, True):
            self._ages[SLOW, exact] = min(self._ages[SLOW, exact], self._ages[DEPLOYED, exact])
        if PARITY in self.stand_ins:
            parity = self.choice(PARITY)
            place = Choice(parity.takes, parity.cost / self._places, parity.coverage)
            self.worth_a_place = self.benefit.at_risk(place, self._run_times)[1]

    def _worth(self, choices: Collection[Choice], kind: str) -> list[tuple[float, float]]:
        """What each of these is worth at best, and from which age on it is to be asked for."""
        running, early = self._running(kind), kind == SLOW
        before = self._ages[DEPLOYED, False] if kind in self.stand_ins else 0.0
        return [self.benefit.at_risk(each, running, before, early=early) for each in choices]

    def _earliest(self, worth: Collection[tuple[float, float]], kind: str) -> float:
        """From which age on the best of these is to be asked for."""
        return min(max(worth)[1], BEYOND * self._running(kind).longest)

    def _running(self, kind: str) -> RunTimes:
        if kind == DEPLOYED:
            return self._run_times
        return (self._on_slow if kind == SLOW else self.stand_ins[kind]).run_times

    def _kind(self, query: Query, task: Task) -> str:
        """What runs like this task; a copy on a slow instance is given the time of any."""
        slow = task is query.original and task.unit and task.unit.instance in self.slow
        return SLOW if slow else _measured(task.role)


def _measured(role: str) -> str:
    return role if role in (DEPLOYED, BACKUP) else PARITY
