"""The health of instances: which of them get work, which are verified, which are replaced.

An instance that is *in* takes units as the dispatch rule says. It is *out* while nothing is
dispatched to it:

    verifying   it has joined, or comes back, and has not yet answered a golden query of each role
    ejected     its units fail more often than those of others; it comes back after a while
    over        it hung, or lied: it is to be replaced, and only leaving is left for it

Out for failing or hanging are never more than half of the instances that run a role, those counted
that left and are not back, whoever ended them, and those that are busy for long. A liar is out
whatever the others are: a wrong answer is worse than none. Those on its node are verified next, as
they may lie for the same reason.

Coming in and verification are here; failing.py and hanging.py see to what they are named after.
What counts as failing and lying is weighed in outliers.py, what counts as hung in run_limits.py.
"""

from collections import Counter
from functools import partial

from parity_models.scheduling.actions import DEPLOYED, RecycleReason
from parity_models.scheduling.config import SchedulerConfig
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.health.failing import Failing
from parity_models.scheduling.health.hanging import Hanging
from parity_models.scheduling.health.members import (
    BACK_OFF,
    SHORT_REST,
    Member,
    Members,
    State,
)
from parity_models.scheduling.health.outliers import Outliers
from parity_models.scheduling.port import HealthPort
from parity_models.scheduling.work import Unit


class Health:
    """Decides which instances a dispatch rule has; acts through the port.

    An instance answers a golden query of a role after `config.verify_every` queries of that role;
    0: never.
    """

    def __init__(self, port: HealthPort, dispatch: Dispatch, config: SchedulerConfig) -> None:
        self._port = port
        self._dispatch = dispatch
        self._verify_every = config.verify_every
        self._members = Members(port, dispatch, config.fleet)
        self._failing = Failing(port, dispatch, self._members, self._come_in)
        self._hanging = Hanging(port, self._members, config.deadline)
        self._disagreements = Outliers()
        self._probes: Counter[str] = Counter()

    # Events

    def joined(self, instance: str, roles: frozenset[str], node: str | None) -> None:
        """An instance is up."""
        self._come_in(self._members.add(instance, roles, node))

    def left(self, instance: str) -> None:
        """An instance is gone."""
        self._members.remove(instance)
        self._failing.forget(instance)
        self._disagreements.clear(instance)

    def started(self, unit: Unit) -> None:
        """An instance has begun a unit."""
        unit.sound = self._members.by_name[unit.instance].sound
        self._hanging.started(unit)

    def ended(self, unit: Unit, *, finished: bool, rest: float = 0.0) -> None:
        """A unit is off its instance, which is idle now, or will be after `rest` seconds."""
        member = self._members.by_name[unit.instance]
        took = self._port.run_time(unit)
        if finished or any(task.wanted for task in unit.tasks):  # it was not cancelled
            member.sound = finished
        if finished:
            self._hanging.finished(unit.role, took)
            self._failing.did_well(member, unit)
        elif rest == 0:
            self._failing.did_badly(member, unit)
        if not member.is_in:
            return
        member.served[unit.role] += len(unit.tasks)
        if rest > 0:
            self._rest(member, rest)
        elif self._is_due(member):
            self._verify_again(member)
        else:
            self._dispatch.idle(member.name, took, finished=finished)

    def verified(self, unit: Unit, *, right: bool) -> None:
        """An instance has answered a golden query."""
        member = self._members.by_name[unit.instance]
        member.verifying, member.sound = False, True
        if not right:
            why = f"answered a golden query of the role {unit.role} wrongly"
            self._members.end(member, RecycleReason.QUARANTINED, why)
            self._suspect_beside(member)
        elif not member.over:
            self._verify_next(member)

    def not_verified(self, unit: Unit, *, rest: float = 0.0) -> None:
        """A golden query has got no answer: its instance failed, or turned it away for `rest`."""
        member = self._members.by_name[unit.instance]
        member.verifying, member.sound = False, False
        member.to_verify.clear()
        if member.over:
            return
        if member.is_in:
            if rest > 0:
                self._rest(member, rest)
                return
            self._failing.charge(member)
            if member.is_in:
                self._dispatch.idle(member.name, 0.0, finished=False)
            return
        if rest == 0 and member.back_off > BACK_OFF:
            self._members.recycle(member, RecycleReason.FAILING, "fails golden queries")
        self._failing.back_off(member, rest)

    def compared(self, instance: str, *, agreed: bool) -> None:
        """A prediction of this instance agrees with its reconstruction, or does not."""
        member = self._members.by_name.get(instance)
        if member is None:
            return
        self._disagreements.add(instance, bad=not agreed)
        if not self._disagreements.stands_out(instance):
            member.suspected &= not self._disagreements.is_clear(instance)
            return
        self._suspect(member)

    def states(self) -> list[tuple[str, State]]:
        """Every instance that has joined and not left, and how it is."""
        return [(member.name, member.state) for member in self._members.by_name.values()]

    # Coming in, and verification

    def _suspect(self, member: Member) -> None:
        """Verify it at once, or after its present unit."""
        member.suspected = True
        if self._verify_every and member.is_in and self._dispatch.occupy(member.name):
            self._verify_again(member)

    def _suspect_beside(self, liar: Member) -> None:
        members = self._members.by_name.values()
        if liar.node is None or all(each.node == liar.node for each in members):
            return  # a node that all share tells nothing
        for other in members:
            if other.is_in and other.node == liar.node:
                self._suspect(other)

    def _come_in(self, member: Member) -> None:
        member.timer = None
        if self._verify_every:
            member.to_verify = _in_order(member.roles)
            self._verify_next(member)
        else:
            self._members.let_in(member)

    def _is_due(self, member: Member) -> bool:
        every = self._verify_every
        return every > 0 and (member.suspected or max(member.served.values(), default=0) >= every)

    def _due(self, member: Member) -> list[str]:
        """The roles that are to be verified again."""
        every = self._verify_every
        return [role for role in _in_order(member.roles) if member.served[role] >= every]

    def _verify_again(self, member: Member) -> None:
        member.to_verify = _in_order(member.roles) if member.suspected else self._due(member)
        self._verify_next(member)

    def _verify_next(self, member: Member) -> None:
        """Verify the next of the roles that are left to verify; then the instance is idle."""
        if member.to_verify:
            role = member.to_verify.pop(0)
            member.served[role] = 0
            member.verifying = True
            self.started(self._port.verify(member.name, role, self._probes[role]))
            self._probes[role] += 1
            return
        if member.suspected:
            member.suspected = False
            self._disagreements.clear(member.name)
        if member.is_in:
            self._dispatch.idle(member.name, 0.0, finished=False)
        else:
            self._members.let_in(member)

    def _rest(self, member: Member, seconds: float) -> None:
        member.rests_long = seconds > SHORT_REST
        at = self._port.now + seconds
        member.timer = self._port.set_timer(at, partial(self._rested, member))

    def _rested(self, member: Member) -> None:
        member.timer = None
        member.rests_long = False
        self._dispatch.idle(member.name, 0.0, finished=False)


def _in_order(roles: frozenset[str]) -> list[str]:
    return sorted(roles, key=lambda role: (role != DEPLOYED, role))
