"""The watch: is told what a server does, and remembers what an operator wants to know of it.

It does no I/O and reads no clock: the driver tells it of events and of the scheduler's actions,
with their times (monotonic, in seconds). That costs little, whether anybody looks or not.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from parity_models.scheduling import (
    DEPLOYED,
    Action,
    Answer,
    Cancel,
    Compare,
    Encode,
    Fail,
    ForgetGroup,
    Recycle,
    Run,
    Source,
    Spare,
    Verify,
)
from parity_models.scheduling.health import State
from parity_models.serving.observer import Observer
from parity_models.serving.page.frames import Event, GateView
from parity_models.serving.page.instances import PageInstances
from parity_models.serving.page.stand_in_requests import StandInRequests
from parity_models.serving.page.tails import Tails

KEPT = 200
"""Events that are remembered."""

QUIET = 5.0
"""Seconds without a failed query after which the next one is an event again."""

VERIFYING = "golden query"
"""What an instance runs that is being verified."""


class Watch(Observer):
    """Of one server. `arrived` says when a query arrived that is being answered; `epoch` is added
    to an event's time to have it in seconds since 1970."""

    def __init__(self, arrived: Callable[[int], float], epoch: float) -> None:
        self.instances = PageInstances()
        self.requests = StandInRequests()
        self.tails = Tails()
        self.answers: Counter[str] = Counter()
        """Queries answered, by source."""
        self.failures: Counter[str] = Counter()
        """Queries that failed, by reason."""
        self.events: deque[Event] = deque(maxlen=KEPT)
        self._arrived = arrived
        self._epoch = epoch
        self._on: Counter[int] = Counter()
        """How many units of the deployed model run each query."""
        self._originals: dict[int, Sequence[int]] = {}
        """The queries of each of these units."""
        self._events = 0
        self._last_failure = -QUIET
        self._ejected: set[str] = set()
        self._closed: set[str] = set()
        self._of: dict[type, Callable[[float, Any], None]] = {
            Run: self._run,
            Verify: self._verify,
            Answer: self._answer,
            Fail: self._fail,
            Cancel: self._cancel,
            Spare: lambda now, action: self.tails.spared(
                self._originals.get(action.unit, ()), action.stands_for
            ),
            Compare: lambda now, action: self.requests.compared(action.instance, action.unit),
            Encode: lambda now, action: self.requests.encoded(action.group, action.members),
            ForgetGroup: lambda now, action: self.requests.group_forgotten(action.group),
            Recycle: self._recycle,
        }

    # What the driver tells

    def acted(self, now: float, actions: Iterable[Action]) -> None:
        """The scheduler has these actions carried out."""
        for action in actions:
            tell = self._of.get(type(action))
            if tell is not None:
                tell(now, action)

    def instance_joined(
        self, now: float, instance: str, roles: frozenset[str], node: str | None
    ) -> None:
        """An instance is up."""
        before = self.instances.joined(instance, roles, node)
        if before is not None:
            self._happened(now, "joined", f"instance {instance} is up, in place of {before}")

    def instance_left(self, now: float, instance: str, why: str) -> None:
        """An instance is gone, and its unit with it, of which `unit_ended` has told."""
        self.instances.left(now, instance, why)
        self._ejected.discard(instance)
        self._happened(now, "left", f"instance {instance} left: it {why}")

    def unit_ended(self, now: float, unit: Run | Verify, *, finished: bool) -> None:
        """A unit is off its instance, with outputs or without."""
        self.instances.ended(now, unit.instance, unit.unit, finished=finished)
        self.requests.ended(now, unit.instance, unit.unit, finished=finished)
        if isinstance(unit, Run) and unit.role == DEPLOYED:
            self._originals.pop(unit.unit, None)
            for query in unit.subjects:
                if self._on[query] > 1:
                    self._on[query] -= 1
                else:
                    del self._on[query]
            self.tails.ended(now, unit.subjects, known=finished)

    def refused(self, now: float, queries: Collection[int], source: Source) -> None:
        """What the stand-in with this source says to these queries may not be given."""
        self.requests.refused(now, queries, source)

    # What is looked at now and then

    def states(self, now: float, states: Mapping[str, State]) -> None:
        """How the instances are that are up."""
        ejected = {name for name, state in states.items() if state is State.EJECTED}
        for name in sorted(ejected - self._ejected):
            self._happened(now, "ejected", f"instance {name} gets no work for a while")
        for name in sorted(self._ejected - ejected):
            self._happened(now, "back", f"instance {name} is back")
        self._ejected = ejected

    def gates(self, now: float, gates: Sequence[GateView]) -> None:
        """How the gates are."""
        closed = {gate.source for gate in gates if not gate.open}
        for source in sorted(closed - self._closed):
            why = "it agrees with the model too seldom"
            self._happened(now, "gate closed", f"the {source} is out of service: {why}")
        for source in sorted(self._closed - closed):
            self._happened(now, "gate open", f"the {source} answers again")
        self._closed = closed

    def events_after(self, number: int) -> tuple[Event, ...]:
        """The events that are remembered with higher numbers, oldest first."""
        return tuple(event for event in self.events if event.number > number)

    def remembered(self) -> int:
        """How much is remembered of what is under way: nothing, when nothing is."""
        return len(self._on) + len(self._originals) + self.requests.under_way + self.tails.owed

    def _happened(self, now: float, kind: str, text: str) -> None:
        self._events += 1
        self.events.append(Event(self._events, self._epoch + now, kind, text))

    # The scheduler's actions

    def _run(self, now: float, action: Run) -> None:
        self.instances.started(now, action.instance, action.unit, action.role)
        if action.role != DEPLOYED:
            self.requests.started(now, action)
            return
        self._originals[action.unit] = action.subjects
        on = self._on
        copies = not on.keys().isdisjoint(action.subjects)
        on.update(action.subjects)
        if copies:
            self.requests.started(now, action)

    def _cancel(self, now: float, action: Cancel) -> None:
        self.requests.cancelled(action.instance, action.unit)
        self.tails.cancelled(self._originals.get(action.unit, ()))

    def _verify(self, now: float, action: Verify) -> None:
        self.instances.started(now, action.instance, action.unit, VERIFYING)

    def _answer(self, now: float, action: Answer) -> None:
        query, source = action.query, action.source
        self.answers[source] += 1
        arrived = self._arrived(query)
        if source in (Source.MODEL, Source.DEFAULT):
            self.tails.answered(now, arrived)
        else:
            self.tails.stood_in(now, query, arrived, runs=query in self._on)
        if source is not Source.DEFAULT:
            reconstructed = source is Source.RECONSTRUCTION
            self.requests.answered(now, query, reconstructed=reconstructed)

    def _fail(self, now: float, action: Fail) -> None:
        self.failures[action.reason] += 1
        if now - self._last_failure >= QUIET:
            self._happened(now, "failed", f"queries fail ({action.reason}): {action.detail}")
        self._last_failure = now

    def _recycle(self, now: float, action: Recycle) -> None:
        text = f"instance {action.instance} is replaced: it {action.why}"
        self._happened(now, str(action.reason), text)
