"""The course of a chaos run: which events happen in which order, drawn from the seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from parity_models.errors import UserError

EVENTS = {
    "calm": "nothing happens",
    "kill": "kill -9 of instances, one after the other",
    "stop": "SIGSTOP of an instance, SIGCONT at the end",
    "slow": "an instance gets little of its time",
    "liar": "an instance runs another model's weights",
    "flip": "an instance runs weights of which one exponent bit is flipped",
    "replace": "the bundle's folder holds another bundle, and an instance is killed",
    "delete": "the bundle's folder is gone, and an instance is killed",
    "descriptors": "no descriptors are left: idle connections hold them, and an instance is killed",
    "slowloris": "clients send headers and bodies byte by byte",
    "halves": "clients send half a body and go",
    "unread": "clients leave their answers unread",
    "disconnects": "clients hang up while they wait",
    "absurd": "inputs of 5, 100, -1e6, 1e30, 3e38, NaN, infinity",
    "nonsense": "wrong shapes, garbage instead of JSON and of HTTP",
    "timeouts": "timeouts near the service time",
    "overload": "three times the queries that the instances can answer",
    "poison": "queries that kill whoever runs them",
}
"""Events, and what they are."""

ALIKE = frozenset({"replace", "delete"})
"""Events that are not brought about at once: both take the bundle's folder."""

TOGETHER = 0.25
"""Share of phases that have two events at once."""
PHASE = (4.0, 8.0)
"""Seconds that events last."""
REST = 1.0
"""Seconds from an event's end to the next one, at the least: recovery, and an idle spell."""


@dataclass(frozen=True)
class Phase:
    """Events that begin together, and last for `seconds`."""

    events: tuple[str, ...]
    seconds: float

    @property
    def name(self) -> str:
        return self.events[0] if len(self.events) == 1 else "two at once"


def draw_course(
    seed: int, seconds: float, events: Sequence[str] = (), length: tuple[float, float] = PHASE
) -> list[Phase]:
    """Phases for so many seconds at least, every event before one comes again, pairs besides.

    Raises UserError for events that there are not.
    """
    unknown = sorted(set(events) - EVENTS.keys())
    if unknown:
        raise UserError(f"there is no event {unknown[0]!r}; there are {', '.join(EVENTS)}")
    known = list(events or EVENTS)
    rng = Random(f"{seed}/course")
    phases: list[Phase] = []
    left: list[str] = []
    spent = 0.0
    while spent < seconds:
        if not left:
            left = rng.sample(known, len(known))
        together = [left.pop()]
        ruled_out = {"calm", *together, *(ALIKE if together[0] in ALIKE else ())}
        others = [event for event in known if event not in ruled_out]
        if others and together != ["calm"] and rng.random() < TOGETHER:
            together = [rng.choice(others), *together]
        phases.append(Phase(tuple(together), rng.uniform(*length)))
        spent += phases[-1].seconds + min(REST, 2 * length[1])
    return phases
