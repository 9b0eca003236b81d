"""Instances in their places: what each one does, how long it takes, and who came for whom."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from statistics import median

from parity_models.scheduling import DEPLOYED, source_of
from parity_models.scheduling.health import State
from parity_models.serving.page.frames import InstanceView

SLOW = 2.0
"""An instance is slow whose units take so many times as long as those of others."""

WEIGHT = 0.2
"""Of the latest unit in an instance's usual run time."""

REMEMBERED = 60.0
"""Seconds for which the place of an instance that is gone is kept, if no other comes."""

MAX_GONE = 64
"""Places of instances that are gone, at most."""


@dataclass(slots=True, eq=False)
class _Seat:
    place: int
    name: str
    node: str
    roles: frozenset[str]
    usual: dict[str, float] = field(default_factory=dict)
    role: str = ""
    unit: int = 0
    began: float = 0.0
    dismissed: bool = False
    gone: float | None = None
    why: str = ""


class Seats:
    """Times in seconds."""

    def __init__(self) -> None:
        self._seats: dict[str, _Seat] = {}
        self._gone: list[_Seat] = []

    def joined(self, name: str, roles: frozenset[str], node: str | None) -> str | None:
        """An instance is up: the name of the one that it came for, if there is one."""
        before = self._predecessor(name, roles, node)
        if before is None:
            taken = {seat.place for seat in (*self._seats.values(), *self._gone)}
            place = next(place for place in count(1) if place not in taken)
        else:
            self._gone.remove(before)
            place = before.place
        self._seats[name] = _Seat(place, name, node or "", roles)
        return None if before is None else before.name

    def left(self, now: float, name: str, why: str) -> None:
        """An instance is gone; the place of one that was dismissed is free."""
        seat = self._seats.pop(name, None)
        if seat is not None and not seat.dismissed:
            seat.gone, seat.why, seat.role = now, why, ""
            self._gone.append(seat)
            del self._gone[:-MAX_GONE]

    def dismissed(self, name: str) -> None:
        """An instance is not needed any more, and goes."""
        seat = self._seats.get(name)
        if seat is not None:
            seat.dismissed = True

    def started(self, now: float, name: str, unit: int, role: str) -> None:
        """An instance has a unit: of one of its roles, or one to verify it."""
        seat = self._seats.get(name)
        if seat is not None:
            seat.role, seat.unit, seat.began = role, unit, now

    def ended(self, now: float, name: str, unit: int, *, finished: bool) -> None:
        """An instance's unit is over; only one that has outputs says how long units take."""
        seat = self._seats.get(name)
        if seat is None or seat.unit != unit or not seat.role:
            return
        if finished and seat.role in seat.roles:
            took = now - seat.began
            usual = seat.usual.get(seat.role, took)
            seat.usual[seat.role] = usual + WEIGHT * (took - usual)
        seat.role = ""

    def running(self) -> int:
        """How many instances have a unit."""
        return sum(bool(seat.role) for seat in self._seats.values())

    def stand_ins(self) -> set[str]:
        """The sources of the stand-ins that some instance runs."""
        roles = frozenset[str]().union(*(seat.roles for seat in self._seats.values()))
        return {str(source_of(role)) for role in roles - {DEPLOYED}}

    def __len__(self) -> int:
        return len(self._seats)

    def views(self, now: float, states: Mapping[str, State]) -> list[InstanceView]:
        """All instances, by their places; `states` are those of instances that are up."""
        self._gone = [seat for seat in self._gone if now - (seat.gone or now) < REMEMBERED]
        typical = self._typical()
        views = [self._view(now, seat, states, typical) for seat in self._seats.values()]
        views += [_view_of_gone(now, seat) for seat in self._gone]
        return sorted(views, key=lambda view: view.place)

    def _predecessor(self, name: str, roles: frozenset[str], node: str | None) -> _Seat | None:
        alike = [seat for seat in self._gone if seat.roles == roles]
        rules: Iterable[Callable[[_Seat], bool]] = (
            lambda seat: seat.name.partition(".")[0] == name.partition(".")[0],
            lambda seat: seat.node == (node or ""),
            lambda seat: True,
        )
        for rule in rules:
            for seat in alike:
                if rule(seat):
                    return seat
        return None

    def _typical(self) -> dict[str, float]:
        """How long units of each role take most instances."""
        times: dict[str, list[float]] = {}
        for seat in self._seats.values():
            for role, usual in seat.usual.items():
                times.setdefault(role, []).append(usual)
        return {role: median(each) for role, each in times.items() if len(each) > 1}

    def _view(
        self, now: float, seat: _Seat, states: Mapping[str, State], typical: Mapping[str, float]
    ) -> InstanceView:
        since = now - seat.began if seat.role else 0.0
        takes = {role: usual for role, usual in seat.usual.items() if role in typical}
        if seat.role in typical:
            takes[seat.role] = max(since, takes.get(seat.role, 0.0))
        return InstanceView(
            seat.place,
            seat.name,
            seat.node,
            tuple(sorted(seat.roles)),
            str(states.get(seat.name, State.UP)),
            any(time > SLOW * typical[role] for role, time in takes.items()),
            seat.role,
            1e3 * since,
            1e3 * seat.usual.get(seat.role or min(seat.usual, default=""), 0.0),
        )


def _view_of_gone(now: float, seat: _Seat) -> InstanceView:
    roles = tuple(sorted(seat.roles))
    since = 1e3 * (now - (seat.gone or now))
    return InstanceView(
        seat.place, seat.name, seat.node, roles, "gone", since_ms=since, why=seat.why
    )
