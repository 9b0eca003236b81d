"""The health of instances: which of them get work, which are verified, which are replaced.

An instance that is *in* takes units as the dispatch rule says. It is *out* while nothing is
dispatched to it:

    verifying   it has joined, or comes back, and has not yet answered a golden query of each work
    ejected     its units fail more often than those of others; it comes back after a while
    over        it hung, or lied: it is to be replaced, and only leaving is left for it

Out for failing or hanging are never more than half of the instances that run a work, those counted
that were recycled and are not back. A liar is out whatever the others are: a wrong answer is worse
than none.

What counts as failing and lying is weighed in outliers.py, what counts as hung in run_limits.py.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from math import inf

from parity_models.scheduling.actions import DEPLOYED, RecycleReason
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.health.outliers import Outliers
from parity_models.scheduling.health.run_limits import RunLimits
from parity_models.scheduling.port import HealthPort
from parity_models.scheduling.timers import Timer
from parity_models.scheduling.work import Unit

DOUBT = 1.0
"""Seconds for which an instance takes last after a unit failed on it."""

BACK_OFF, LONGEST_BACK_OFF = 1.0, 60.0
"""Seconds for which an instance is ejected the first time, and at most; they double each time."""

PROVEN = 100
"""After so many units without a failure, the next ejection is a first one again."""

REPLACED_WITHIN = 30.0
"""Seconds for which a recycled instance that has left counts as out, if no other joins for it."""

SECOND_LOOK = 0.25
"""Seconds after which a unit that is over its limit is looked at again. Where the server itself
was held up, the reports of finished units are only waiting to be read."""


class State(StrEnum):
    """What an operator may know of an instance."""

    UP = "up"
    SUSPECTED = "suspected"
    """It failed lately, or disagrees more often than others do."""
    EJECTED = "ejected"
    """It gets no work."""
    VERIFYING = "verifying"
    """It answers golden queries."""


@dataclass(slots=True, eq=False)
class _Member:
    """An instance. It is ejected, or rests, while `timer` runs."""

    name: str
    works: frozenset[str]
    node: str | None
    is_in: bool = False
    over: bool = False
    recycled: bool = False
    doubted: bool = False
    doubted_until: float = 0.0
    suspected: bool = False
    verifying: bool = False
    to_verify: list[str] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)
    """Queries of each work that it ran since it was last verified."""
    on_probation: bool = False
    back_off: float = BACK_OFF
    proven: int = 0
    timer: Timer | None = None


class Health:
    """Decides which instances a dispatch rule has; acts through the port.

    `verify_every`: an instance answers a golden query of a work after so many queries of that
    work; 0: never.
    """

    def __init__(
        self, port: HealthPort, dispatch: Dispatch, *, verify_every: int, deadline: float
    ) -> None:
        self._port = port
        self._dispatch = dispatch
        self._verify_every = verify_every
        self._deadline = deadline
        self._members: dict[str, _Member] = {}
        self._away: list[tuple[frozenset[str], float]] = []
        self._failures = Outliers()
        self._disagreements = Outliers()
        self._limits = RunLimits(deadline)
        self._probes: Counter[str] = Counter()
        self._watch: Timer | None = None
        self._over_limit: dict[int, float] = {}

    # Events

    def joined(self, instance: str, works: frozenset[str], node: str | None) -> None:
        """An instance is up."""
        member = self._members[instance] = _Member(instance, works, node)
        away = next((away for away in self._away if away[0] == works), None)
        if away is not None:
            self._away.remove(away)
        self._come_in(member)

    def left(self, instance: str) -> None:
        """An instance is gone."""
        member = self._members.pop(instance)
        self._port.cancel_timer(member.timer)
        if member.is_in:
            self._dispatch.leave(instance)
        if member.recycled:
            self._away.append((member.works, self._port.now + REPLACED_WITHIN))
        self._failures.clear(instance)
        self._disagreements.clear(instance)

    def started(self, unit: Unit) -> None:
        """An instance has begun a unit."""
        if self._watch is None:
            limit = self._limit(unit)
            if limit is not None:
                self._watch = self._port.set_timer(unit.started + limit, self._look)

    def ended(self, unit: Unit, *, finished: bool, rest: float = 0.0) -> None:
        """A unit is off its instance, which is idle now, or will be after `rest` seconds."""
        member = self._members[unit.instance]
        took = self._port.now - unit.started
        if finished:
            self._limits.finished(unit.work, took)
            self._did_well(member, unit)
        elif rest == 0:
            self._did_badly(member, unit)
        if not member.is_in:
            return
        member.served[unit.work] += len(unit.tasks)
        if rest > 0:
            self._rest(member, rest)
        elif self._is_due(member):
            self._verify_again(member)
        else:
            self._dispatch.idle(member.name, took, finished=finished)

    def verified(self, unit: Unit, *, right: bool) -> None:
        """An instance has answered a golden query."""
        member = self._members[unit.instance]
        member.verifying = False
        if not right:
            why = f"answered a golden query of the work {unit.work} wrongly"
            self._end(member, RecycleReason.QUARANTINED, why)
        elif not member.over:
            self._verify_next(member)

    def not_verified(self, unit: Unit, *, rest: float = 0.0) -> None:
        """A golden query has got no answer: its instance failed, or turned it away for `rest`."""
        member = self._members[unit.instance]
        member.verifying = False
        member.to_verify.clear()
        if member.over:
            return
        if member.is_in:
            if rest > 0:
                self._rest(member, rest)
                return
            self._charge(member)
            if member.is_in:
                self._dispatch.idle(member.name, 0.0, finished=False)
            return
        if rest == 0 and member.back_off > BACK_OFF:
            self._recycle(member, RecycleReason.FAILING, "fails golden queries")
        self._back_off(member, rest)

    def compared(self, instance: str, *, agreed: bool) -> None:
        """A prediction of this instance agrees with its reconstruction, or does not."""
        member = self._members.get(instance)
        if member is None:
            return
        self._disagreements.add(instance, bad=not agreed)
        if not self._disagreements.stands_out(instance):
            member.suspected &= not self._disagreements.is_clear(instance)
            return
        member.suspected = True
        if self._verify_every and member.is_in and self._dispatch.occupy(instance):
            self._verify_again(member)

    def states(self) -> list[tuple[str, State]]:
        """Every instance that has joined and not left, and how it is."""
        return [(name, _state(member)) for name, member in self._members.items()]

    # Coming in, and verification

    def _come_in(self, member: _Member) -> None:
        member.timer = None
        if self._verify_every:
            member.to_verify = _in_order(member.works)
            self._verify_next(member)
        else:
            self._let_in(member)

    def _let_in(self, member: _Member) -> None:
        member.is_in = True
        member.recycled = False
        self._dispatch.join(member.name, member.works, member.node)

    def _is_due(self, member: _Member) -> bool:
        return self._verify_every > 0 and (member.suspected or bool(self._due(member)))

    def _due(self, member: _Member) -> list[str]:
        """The works that are to be verified again."""
        every = self._verify_every
        return [work for work in _in_order(member.works) if member.served[work] >= every]

    def _verify_again(self, member: _Member) -> None:
        member.to_verify = _in_order(member.works) if member.suspected else self._due(member)
        self._verify_next(member)

    def _verify_next(self, member: _Member) -> None:
        """Verify the next of the works that are left to verify; then the instance is idle."""
        if member.to_verify:
            work = member.to_verify.pop(0)
            member.served[work] = 0
            member.verifying = True
            self._port.verify(member.name, work, self._probes[work])
            self._probes[work] += 1
            return
        if member.suspected:
            member.suspected = False
            self._disagreements.clear(member.name)
        if member.is_in:
            self._dispatch.idle(member.name, 0.0, finished=False)
        else:
            self._let_in(member)

    def _rest(self, member: _Member, seconds: float) -> None:
        at = self._port.now + seconds
        member.timer = self._port.set_timer(at, partial(self._rested, member))

    def _rested(self, member: _Member) -> None:
        member.timer = None
        self._dispatch.idle(member.name, 0.0, finished=False)

    # Failing

    def _did_well(self, member: _Member, unit: Unit) -> None:
        for task in unit.tasks:
            # What was taken back is charged after all: the instances that failed it were at fault.
            if task.charge is not None and not task.charge[1] and not task.turned_away:
                for name in {*task.failed_on} & self._members.keys() - {member.name}:
                    self._failures.add(name, bad=True)
        self._failures.add(member.name, bad=False)
        member.on_probation = False
        member.proven += 1
        if member.proven == PROVEN:
            member.back_off = BACK_OFF
        if member.doubted and self._failures.is_clear(member.name):
            self._trust(member)

    def _did_badly(self, member: _Member, unit: Unit) -> None:
        """Charge the instance with the failure, unless the tasks have failed elsewhere as well."""
        wanted = [task for task in unit.tasks if task.wanted]
        if not wanted:  # it was cancelled
            return
        elsewhere = [task for task in wanted if task.charge and task.charge[0] != member.name]
        if elsewhere:
            for task in elsewhere:
                if task.charge:
                    self._failures.take_back(*task.charge)
            for task in wanted:
                task.charge = (member.name, 0.0)
            return
        growth = self._charge(member)
        for task in wanted:
            task.charge = (member.name, growth)

    def _charge(self, member: _Member) -> float:
        growth = self._failures.add(member.name, bad=True)
        member.proven = 0
        if not member.is_in:
            return growth
        failing = member.on_probation or self._failures.stands_out(member.name)
        if failing and self._may_lose(member):
            self._put_out(member)
            self._recycle(member, RecycleReason.FAILING, "fails units more often than others do")
            self._back_off(member)
        else:
            self._doubt(member)
        return growth

    def _back_off(self, member: _Member, rest: float = 0.0) -> None:
        """Keep the instance out for a while, twice as long each time."""
        self._failures.clear(member.name)
        at = self._port.now + (rest or member.back_off)
        member.timer = self._port.set_timer(at, partial(self._come_in, member))
        if rest == 0:
            member.on_probation = True
            member.back_off = min(2 * member.back_off, LONGEST_BACK_OFF)

    def _doubt(self, member: _Member) -> None:
        member.doubted_until = self._port.now + DOUBT
        if not member.doubted:
            member.doubted = True
            self._dispatch.doubt(member.name)
            self._port.set_timer(member.doubted_until, partial(self._doubt_over, member))

    def _doubt_over(self, member: _Member) -> None:
        if self._members.get(member.name) is not member or not member.doubted:
            return
        if self._port.now < member.doubted_until:
            self._port.set_timer(member.doubted_until, partial(self._doubt_over, member))
        else:
            self._trust(member)

    def _trust(self, member: _Member) -> None:
        member.doubted = False
        if member.is_in:
            self._dispatch.trust(member.name)

    # Hanging

    def _limit(self, unit: Unit) -> float | None:
        limit = self._limits.limit(unit.work)
        return self._deadline if limit is None and unit.golden else limit

    def _look(self) -> None:
        """Which of the units that run have hung? And when is the next to be looked at?"""
        now = self._port.now
        before, self._over_limit = self._over_limit, {}
        self._watch = None
        next_look = inf
        for unit in self._port.units():
            limit, member = self._limit(unit), self._members[unit.instance]
            if limit is None or member.over:
                continue
            since = before.get(unit.id, now)
            if now < unit.started + limit:
                next_look = min(next_look, unit.started + limit)
            elif now < since + SECOND_LOOK:
                self._over_limit[unit.id] = since
                next_look = min(next_look, since + SECOND_LOOK)
            elif self._may_lose(member):
                took = f"for {now - unit.started:.3g} s, more than {limit:.3g} s"
                self._end(member, RecycleReason.HUNG, f"has had a unit of {unit.work} {took}")
            else:
                self._over_limit[unit.id] = since
                next_look = min(next_look, now + limit)
        if next_look < inf:
            self._watch = self._port.set_timer(next_look, self._look)

    # Losing instances

    def _may_lose(self, member: _Member) -> bool:
        """Would at most half of the instances of each of its works be out without this one?"""
        if not member.is_in:
            return True
        now = self._port.now
        self._away = [away for away in self._away if away[1] > now]
        for work in member.works:
            alike = [other for other in self._members.values() if work in other.works]
            away = sum(work in works for works, _ in self._away)
            out = away + sum(not other.is_in for other in alike)
            if 2 * (out + 1) > len(alike) + away:
                return False
        return True

    def _end(self, member: _Member, reason: RecycleReason, why: str) -> None:
        """Nothing more is given to this instance, which is to be replaced."""
        if member.is_in:
            self._put_out(member)
        member.over = True
        self._recycle(member, reason, why)

    def _put_out(self, member: _Member) -> None:
        self._dispatch.leave(member.name)
        member.is_in = member.doubted = False

    def _recycle(self, member: _Member, reason: RecycleReason, why: str) -> None:
        member.recycled = True
        self._port.recycle(member.name, reason, why)


def _in_order(works: frozenset[str]) -> list[str]:
    return sorted(works, key=lambda work: (work != DEPLOYED, work))


def _state(member: _Member) -> State:
    if member.verifying:
        return State.VERIFYING
    if not member.is_in:
        return State.EJECTED
    return State.SUSPECTED if member.suspected or member.doubted else State.UP
