"""The instances that are up: which of them are in, and how many may be out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

from parity_models.scheduling.actions import RecycleReason
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.port import HealthPort
from parity_models.scheduling.timers import Timer

BACK_OFF, LONGEST_BACK_OFF = 1.0, 60.0
"""Seconds for which an instance is ejected the first time, and at most; they double each time."""

REPLACED_WITHIN = 30.0
"""Seconds for which an instance that has left counts as out, if no other joins for it; after that
the pool counts as smaller, unless its size is given."""

SHORT_REST = 5.0
"""Seconds for which an instance may be busy, and still counts as one that takes units."""


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
class Member:
    """An instance. It is ejected, or rests, while `timer` runs.

    `is_in`: it is given units, if it does not rest; `rests_long`: for more than SHORT_REST.
    `sound`: it has finished what it was given last. `over`: nothing is left for it but leaving.
    `served` counts the queries of each role that it ran since it was last verified.
    """

    name: str
    roles: frozenset[str]
    node: str | None
    is_in: bool = False
    rests_long: bool = False
    sound: bool = True
    over: bool = False
    doubted: bool = False
    doubted_until: float = 0.0
    suspected: bool = False
    verifying: bool = False
    to_verify: list[str] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)
    on_probation: bool = False
    back_off: float = BACK_OFF
    proven: int = 0
    timer: Timer | None = None

    @property
    def is_there(self) -> bool:
        """Does it take units, now or soon?"""
        return self.is_in and not self.rests_long

    @property
    def state(self) -> State:
        if self.verifying:
            return State.VERIFYING
        if not self.is_in:
            return State.EJECTED
        return State.SUSPECTED if self.suspected or self.doubted else State.UP


class Members:
    """The instances that have joined and not left; lets them in and puts them out.

    `fleet`: the roles of each instance that there always is to be; none: that is not given.
    """

    def __init__(
        self, port: HealthPort, dispatch: Dispatch, fleet: Sequence[frozenset[str]]
    ) -> None:
        self._port = port
        self._dispatch = dispatch
        self.by_name: dict[str, Member] = {}
        self._replaced_within = inf if fleet else REPLACED_WITHIN
        self._away = [(roles, inf) for roles in fleet]

    def add(self, instance: str, roles: frozenset[str], node: str | None) -> Member:
        """An instance has joined; it is not in yet."""
        member = self.by_name[instance] = Member(instance, roles, node)
        away = next((away for away in self._away if away[0] == roles), None)
        if away is not None:
            self._away.remove(away)
        return member

    def remove(self, instance: str) -> None:
        """An instance has left."""
        member = self.by_name.pop(instance)
        self._port.cancel_timer(member.timer)
        if member.is_in:
            self._dispatch.leave(instance)
        self._forget_away()
        self._away.append((member.roles, self._port.now + self._replaced_within))

    def let_in(self, member: Member) -> None:
        """It is given units from now on."""
        member.is_in = True
        self._dispatch.join(member.name, member.roles, member.node)

    def put_out(self, member: Member) -> None:
        """It is given no more units."""
        self._dispatch.leave(member.name)
        member.is_in = member.doubted = False

    def may_lose(self, member: Member) -> bool:
        """Would at most half of the instances of each of its roles be out without this one? One
        that rests for long is out, too."""
        if not member.is_there:
            return True
        self._forget_away()
        for role in member.roles:
            alike = [other for other in self.by_name.values() if role in other.roles]
            away = sum(role in roles for roles, _ in self._away)
            out = away + sum(not other.is_there for other in alike)
            if 2 * (out + 1) > len(alike) + away:
                return False
        return True

    def recycle(self, member: Member, reason: RecycleReason, why: str) -> None:
        """It is to be replaced; until then it may come in again."""
        self._port.recycle(member.name, reason, why)

    def end(self, member: Member, reason: RecycleReason, why: str) -> None:
        """It is to be replaced, and is out until then."""
        if member.is_in:
            self.put_out(member)
        member.over = True
        self.recycle(member, reason, why)

    def _forget_away(self) -> None:
        self._away = [away for away in self._away if away[1] > self._port.now]
