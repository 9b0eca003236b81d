"""Instances whose units fail: doubted at once, ejected when they fail more often than others do."""

from collections.abc import Callable
from functools import partial

from parity_models.scheduling.actions import RecycleReason
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.health.members import (
    BACK_OFF,
    LONGEST_BACK_OFF,
    Member,
    Members,
)
from parity_models.scheduling.health.outliers import Outliers
from parity_models.scheduling.port import HealthPort
from parity_models.scheduling.work import Unit

DOUBT = 1.0
"""Seconds for which an instance takes last after a unit failed on it."""

PROVEN = 100
"""After so many units without a failure, the next ejection is a first one again."""


class Failing:
    """Charges instances with the units that fail on them; `come_back` is called when the time of an
    ejected one is over."""

    def __init__(
        self,
        port: HealthPort,
        dispatch: Dispatch,
        members: Members,
        come_back: Callable[[Member], None],
    ) -> None:
        self._port = port
        self._dispatch = dispatch
        self._members = members
        self._come_back = come_back
        self._failures = Outliers()

    def forget(self, instance: str) -> None:
        """The instance has left."""
        self._failures.clear(instance)

    def did_well(self, member: Member, unit: Unit) -> None:
        """The instance has finished this unit."""
        for task in unit.tasks:
            # What was taken back is charged after all: the instances that failed it were at fault.
            if task.charge is not None and not task.charge[1] and not task.turned_away:
                for name in dict.fromkeys(task.failed_on):
                    if name != member.name and name in self._members.by_name:
                        self._failures.add(name, bad=True)
        self._failures.add(member.name, bad=False)
        member.on_probation = False
        member.proven += 1
        if member.proven == PROVEN:
            member.back_off = BACK_OFF
        if member.doubted and self._failures.is_clear(member.name):
            self._trust(member)

    def did_badly(self, member: Member, unit: Unit) -> None:
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
        growth = self.charge(member)
        for task in wanted:
            task.charge = (member.name, growth)

    def charge(self, member: Member) -> float:
        """The instance has failed something: eject or doubt it; by how much has its sum grown?"""
        growth = self._failures.add(member.name, bad=True)
        member.proven = 0
        if not member.is_in:
            return growth
        failing = member.on_probation or self._failures.stands_out(member.name)
        if failing and self._members.may_lose(member):
            self._members.put_out(member)
            why = "fails units more often than others do"
            self._members.recycle(member, RecycleReason.FAILING, why)
            self.back_off(member)
        else:
            self._doubt(member)
        return growth

    def back_off(self, member: Member, rest: float = 0.0) -> None:
        """Keep the instance out for a while, twice as long each time, or for `rest` seconds."""
        self._failures.clear(member.name)
        at = self._port.now + (rest or member.back_off)
        member.timer = self._port.set_timer(at, partial(self._come_back, member))
        if rest == 0:
            member.on_probation = True
            member.back_off = min(2 * member.back_off, LONGEST_BACK_OFF)

    def _doubt(self, member: Member) -> None:
        member.doubted_until = self._port.now + DOUBT
        if not member.doubted:
            member.doubted = True
            self._dispatch.doubt(member.name)
            self._port.set_timer(member.doubted_until, partial(self._doubt_over, member))

    def _doubt_over(self, member: Member) -> None:
        if self._members.by_name.get(member.name) is not member or not member.doubted:
            return
        if self._port.now < member.doubted_until:
            self._port.set_timer(member.doubted_until, partial(self._doubt_over, member))
        else:
            self._trust(member)

    def _trust(self, member: Member) -> None:
        member.doubted = False
        if member.is_in:
            self._dispatch.trust(member.name)
