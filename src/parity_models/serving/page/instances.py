"""The instances on the live page: what each runs, how long that takes it, and what it replaced.

Each has a place on the page. An instance that replaces one that is gone takes over its place.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from statistics import median

from msgspec import Struct

from parity_models.scheduling.health import State

SLOW = 2.0
"""An instance is slow if its units take this many times as long as those of others."""

WEIGHT = 0.2
"""The weight of the latest unit in an instance's usual run time."""

REMEMBERED = 60.0
"""Seconds for which the place of an instance that is gone is kept if nothing replaces it."""

MAX_GONE = 64
"""The most places that are kept for instances that are gone."""


class InstanceView(Struct, frozen=True):
    """An instance in its `place`.

    `state` is up, suspected, ejected, verifying or gone. It is `slow` if its units take longer than
    those of others. `running` is the role of its unit, which it has had for `since_ms`; units of
    that role take it `usual_ms`. `why` is said of one that is gone.
    """

    place: int
    name: str
    node: str
    roles: tuple[str, ...]
    state: str
    slow: bool = False
    running: str = ""
    since_ms: float = 0.0
    usual_ms: float = 0.0
    why: str = ""


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
    """The instances, from what happens to them. Times in seconds."""

    def __init__(self) -> None:
        self._up: dict[str, _Instance] = {}
        self._gone: list[_Instance] = []

    def __len__(self) -> int:
        return len(self._up)

    def joined(self, name: str, roles: frozenset[str], node: str | None) -> str | None:
        """Add an instance; return the name of the one that it replaces, if any."""
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
        """Mark an instance gone; its place is kept for a while."""
        instance = self._up.pop(name, None)
        if instance is not None:
            instance.gone, instance.why, instance.role = now, why, ""
            self._gone.append(instance)
            del self._gone[:-MAX_GONE]

    def started(self, now: float, name: str, unit: int, role: str) -> None:
        """Give an instance a unit: of one of its roles, or one to verify it."""
        instance = self._up.get(name)
        if instance is not None:
            instance.role, instance.unit, instance.began = role, unit, now

    def ended(self, now: float, name: str, unit: int, *, finished: bool) -> None:
        """Take an instance's unit; if it `finished`, its time counts for the usual run time."""
        instance = self._up.get(name)
        if instance is None or instance.unit != unit or not instance.role:
            return
        if finished and instance.role in instance.roles:
            took = now - instance.began
            usual = instance.usual.get(instance.role, took)
            instance.usual[instance.role] = usual + WEIGHT * (took - usual)
        instance.role = ""

    def running(self) -> int:
        """Return how many instances have a unit."""
        return sum(bool(instance.role) for instance in self._up.values())

    def views(self, now: float, states: Mapping[str, State]) -> list[InstanceView]:
        """Return all instances, by place; `states` are those of instances that are up."""
        self._gone = [
            instance for instance in self._gone if now - (instance.gone or now) < REMEMBERED
        ]
        times: dict[str, list[float]] = {}
        for instance in self._up.values():
            for role, usual in instance.usual.items():
                times.setdefault(role, []).append(usual)
        typical = {role: median(each) for role, each in times.items() if len(each) > 1}
        views = [
            _view(now, instance, str(states.get(instance.name, State.UP)), typical)
            for instance in self._up.values()
        ]
        views += [_view(now, instance, "gone", {}) for instance in self._gone]
        return sorted(views, key=lambda view: view.place)

    def _predecessor(self, name: str, roles: frozenset[str], node: str | None) -> _Instance | None:
        alike = [instance for instance in self._gone if instance.roles == roles]
        rules: Iterable[Callable[[_Instance], bool]] = (
            lambda instance: instance.name.partition(".")[0] == name.partition(".")[0],
            lambda instance: instance.node == (node or ""),
            lambda instance: True,
        )
        found = (instance for rule in rules for instance in alike if rule(instance))
        return next(found, None)


def _view(
    now: float, instance: _Instance, state: str, typical: Mapping[str, float]
) -> InstanceView:
    began = instance.gone if instance.gone is not None else instance.began
    since = now - began if instance.role or instance.gone is not None else 0.0
    takes = {role: usual for role, usual in instance.usual.items() if role in typical}
    if instance.role in typical:
        takes[instance.role] = max(since, takes.get(instance.role, 0.0))
    return InstanceView(
        instance.place,
        instance.name,
        instance.node,
        tuple(sorted(instance.roles)),
        state,
        any(time > SLOW * typical[role] for role, time in takes.items()),
        instance.role,
        1e3 * since,
        1e3 * instance.usual.get(instance.role or min(instance.usual, default=""), 0.0),
        instance.why,
    )
