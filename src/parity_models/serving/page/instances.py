"""The instances that the live page shows: what each one does, how long it takes, what it replaced.

Each has a place on the page. An instance that replaces one that is gone takes over its place.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from statistics import median

from parity_models.scheduling import DEPLOYED, source_of
from parity_models.scheduling.health import State
from parity_models.serving.page.frames import InstanceView

SLOW = 2.0
"""An instance is slow if its units take this many times as long as those of others."""

WEIGHT = 0.2
"""The weight of the latest unit in an instance's usual run time."""

REMEMBERED = 60.0
"""Seconds for which the place of an instance that is gone is kept if nothing replaces it."""

MAX_GONE = 64
"""The most places that are kept for instances that are gone."""


@dataclass(slots=True, eq=False)
class _Instance:
    place: int
    name: str
    node: str
    roles: frozenset[str]
    usual: dict[str, float] = field(default_factory=dict)
    role: str = ""
    unit: int = 0
    began: float = 0.0
    gone: float | None = None
    why: str = ""


class PageInstances:
    """Knows the instances from what happens to them; times in seconds."""

    def __init__(self) -> None:
        self._up: dict[str, _Instance] = {}
        self._gone: list[_Instance] = []

    def joined(self, name: str, roles: frozenset[str], node: str | None) -> str | None:
        """An instance is up; returns the name of the instance that it replaces, if any."""
        before = self._predecessor(name, roles, node)
        if before is None:
            taken = {instance.place for instance in (*self._up.values(), *self._gone)}
            place = next(place for place in count(1) if place not in taken)
        else:
            self._gone.remove(before)
            place = before.place
        self._up[name] = _Instance(place, name, node or "", roles)
        return None if before is None else before.name

    def left(self, now: float, name: str, why: str) -> None:
        """An instance is gone; its place is kept for a while."""
        instance = self._up.pop(name, None)
        if instance is not None:
            instance.gone, instance.why, instance.role = now, why, ""
            self._gone.append(instance)
            del self._gone[:-MAX_GONE]

    def started(self, now: float, name: str, unit: int, role: str) -> None:
        """An instance has a unit: of one of its roles, or one to verify it."""
        instance = self._up.get(name)
        if instance is not None:
            instance.role, instance.unit, instance.began = role, unit, now

    def ended(self, now: float, name: str, unit: int, *, finished: bool) -> None:
        """An instance's unit is over; if it `finished`, its time counts for the usual run time."""
        instance = self._up.get(name)
        if instance is None or instance.unit != unit or not instance.role:
            return
        if finished and instance.role in instance.roles:
            took = now - instance.began
            usual = instance.usual.get(instance.role, took)
            instance.usual[instance.role] = usual + WEIGHT * (took - usual)
        instance.role = ""

    def running(self) -> int:
        """How many instances have a unit."""
        return sum(bool(instance.role) for instance in self._up.values())

    def stand_ins(self) -> set[str]:
        """The sources of the stand-ins that some instance runs."""
        roles = frozenset[str]().union(*(instance.roles for instance in self._up.values()))
        return {str(source_of(role)) for role in roles - {DEPLOYED}}

    def __len__(self) -> int:
        return len(self._up)

    def views(self, now: float, states: Mapping[str, State]) -> list[InstanceView]:
        """All instances, by their places; `states` are those of instances that are up."""
        self._gone = [
            instance for instance in self._gone if now - (instance.gone or now) < REMEMBERED
        ]
        typical = self._typical()
        views = [self._view(now, instance, states, typical) for instance in self._up.values()]
        views += [_view_of_gone(now, instance) for instance in self._gone]
        return sorted(views, key=lambda view: view.place)

    def _predecessor(self, name: str, roles: frozenset[str], node: str | None) -> _Instance | None:
        alike = [instance for instance in self._gone if instance.roles == roles]
        rules: Iterable[Callable[[_Instance], bool]] = (
            lambda instance: instance.name.partition(".")[0] == name.partition(".")[0],
            lambda instance: instance.node == (node or ""),
            lambda instance: True,
        )
        for rule in rules:
            for instance in alike:
                if rule(instance):
                    return instance
        return None

    def _typical(self) -> dict[str, float]:
        """How long units of each role take most instances."""
        times: dict[str, list[float]] = {}
        for instance in self._up.values():
            for role, usual in instance.usual.items():
                times.setdefault(role, []).append(usual)
        return {role: median(each) for role, each in times.items() if len(each) > 1}

    def _view(
        self,
        now: float,
        instance: _Instance,
        states: Mapping[str, State],
        typical: Mapping[str, float],
    ) -> InstanceView:
        since = now - instance.began if instance.role else 0.0
        takes = {role: usual for role, usual in instance.usual.items() if role in typical}
        if instance.role in typical:
            takes[instance.role] = max(since, takes.get(instance.role, 0.0))
        return InstanceView(
            instance.place,
            instance.name,
            instance.node,
            tuple(sorted(instance.roles)),
            str(states.get(instance.name, State.UP)),
            any(time > SLOW * typical[role] for role, time in takes.items()),
            instance.role,
            1e3 * since,
            1e3 * instance.usual.get(instance.role or min(instance.usual, default=""), 0.0),
        )


def _view_of_gone(now: float, instance: _Instance) -> InstanceView:
    roles = tuple(sorted(instance.roles))
    since = 1e3 * (now - (instance.gone or now))
    return InstanceView(
        instance.place,
        instance.name,
        instance.node,
        roles,
        "gone",
        since_ms=since,
        why=instance.why,
    )
