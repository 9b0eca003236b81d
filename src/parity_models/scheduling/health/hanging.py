"""Units that hang: they have run for longer than their limit, at two looks."""

from math import inf

from parity_models.scheduling.actions import RecycleReason
from parity_models.scheduling.health.members import Members
from parity_models.scheduling.health.run_limits import RunLimits
from parity_models.scheduling.port import HealthPort
from parity_models.scheduling.timers import Timer
from parity_models.scheduling.work import Unit

SECOND_LOOK, OF_DEADLINE = 0.25, 0.125
"""Seconds after which a unit that is over its limit is looked at again, or this share of the
deadline if that is sooner. Where the server itself was held up, the reports of finished units are
only waiting to be read."""


class Hanging:
    """Has instances replaced that hang, as far as they may be lost; times in seconds.

    `deadline` is that of queries; see run_limits.py for the limits.
    """

    def __init__(self, port: HealthPort, members: Members, deadline: float) -> None:
        self._port = port
        self._members = members
        self._deadline = deadline
        self._limits = RunLimits(deadline)
        self._second_look = min(SECOND_LOOK, OF_DEADLINE * deadline)
        self._watch: Timer | None = None
        self._over_limit: dict[int, float] = {}

    def started(self, unit: Unit) -> None:
        """An instance has begun a unit."""
        if self._watch is None:
            limit = self._limit(unit)
            if limit is not None:
                self._watch = self._port.set_timer(unit.started + limit, self._look)

    def finished(self, role: str, took: float) -> None:
        """A unit has run to its end."""
        self._limits.finished(role, took)

    def _limit(self, unit: Unit) -> float | None:
        limit = self._limits.limit(unit.role)
        return self._deadline if limit is None and unit.golden else limit

    def _look(self) -> None:
        """Which of the units that run have hung? And when is the next to be looked at?"""
        now = self._port.now
        before, self._over_limit = self._over_limit, {}
        self._watch = None
        next_look = inf
        for unit in self._port.units.values():
            limit, member = self._limit(unit), self._members.by_name[unit.instance]
            if limit is None or member.over:
                continue
            since = before.get(unit.id, now)
            if now < unit.started + limit:
                next_look = min(next_look, unit.started + limit)
            elif now < since + self._second_look:
                self._over_limit[unit.id] = since
                next_look = min(next_look, since + self._second_look)
            elif self._members.may_lose(member):
                took = f"for {now - unit.started:.3g} s, more than {limit:.3g} s"
                why = f"has had a unit of {unit.role} {took}"
                unit.hung = True
                self._members.end(member, RecycleReason.HUNG, why)
            else:
                self._over_limit[unit.id] = since
                next_look = min(next_look, now + limit)
        if next_look < inf:
            self._watch = self._port.set_timer(next_look, self._look)
