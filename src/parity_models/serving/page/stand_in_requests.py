"""Requests to stand-ins, and copies: the latest of them, and what became of each."""

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from parity_models.scheduling import BACKUPS, DEPLOYED, Run, Source, source_of
from parity_models.serving.page.frames import RequestView

KEPT = 60
"""Requests that are remembered."""

COPY = "copy"
"""What a further task of a query on the deployed model is called."""


@dataclass(slots=True, eq=False)
class _Request:
    unit: int
    role: str
    instance: str
    queries: tuple[int, ...]
    started: float
    changed: float
    answered: list[int] = field(default_factory=list)
    refused: bool = False
    cancelled: bool = False
    compared: bool = False
    outcome: str = "running"
    ended: float = 0.0


class StandInRequests:
    """Times in seconds. Times of events do not go back."""

    def __init__(self) -> None:
        self.sent = 0
        """How many there have been."""
        self._latest: deque[_Request] = deque(maxlen=KEPT)
        self._running: dict[str, _Request] = {}
        """By instance."""
        self._groups: dict[int, tuple[int, ...]] = {}
        self._just_ended: _Request | None = None

    def encoded(self, group: int, members: tuple[int, ...]) -> None:
        """A coding group has these queries."""
        self._groups[group] = members

    def group_forgotten(self, group: int) -> None:
        """Nothing more comes of a group."""
        self._groups.pop(group, None)

    def started(self, now: float, run: Run) -> None:
        """A stand-in, or a copy, begins to run."""
        queries = run.subjects
        if run.role not in (DEPLOYED, *BACKUPS):
            queries = tuple(q for group in run.subjects for q in self._groups.get(group, ()))
        role = COPY if run.role == DEPLOYED else run.role
        request = _Request(run.unit, role, run.instance, queries, now, now)
        self.sent += 1
        self._latest.append(request)
        self._running[run.instance] = request

    def answered(self, now: float, query: int, *, reconstructed: bool) -> None:
        """A query has its answer, of the deployed model, a backup or a reconstruction."""
        request = self._just_ended
        if reconstructed:
            request = next(self._of_parity(query), None)
        if request is not None and query in request.queries:
            request.answered.append(query)
            request.outcome, request.changed = "answered", now

    def refused(self, now: float, queries: Collection[int], source: Source) -> None:
        """What the stand-in with this source says to these queries may not be given."""
        for request in self._latest:
            if (
                request.role != COPY
                and source_of(request.role) is source
                and not request.answered
                and not {*queries}.isdisjoint(request.queries)
            ):
                request.refused = True
                if request.outcome == "late":
                    request.outcome, request.changed = "refused", now

    def cancelled(self, instance: str, unit: int) -> None:
        """Nobody waits for a unit any more."""
        request = self._running.get(instance)
        if request is not None and request.unit == unit:
            request.cancelled = True

    def compared(self, instance: str, unit: int) -> None:
        """A unit runs, or runs on, for nobody but a comparison."""
        request = self._running.get(instance)
        if request is not None and request.unit == unit:
            request.compared = True

    def ended(self, now: float, instance: str, unit: int, *, finished: bool) -> None:
        """A unit is off its instance, with outputs or without."""
        self._just_ended = None
        request = self._running.pop(instance, None)
        if request is None:
            return
        request.changed = request.ended = now
        if request.unit != unit:
            request.outcome = "lost"
        elif finished:
            needed = "refused" if request.refused else "late"
            request.outcome = "compared" if request.compared else needed
            self._just_ended = request
        else:
            request.outcome = "cancelled" if request.cancelled else "lost"

    @property
    def under_way(self) -> int:
        """How many requests run and how many groups are remembered."""
        return len(self._running) + len(self._groups)

    def since(self, time: float, now: float) -> Sequence[RequestView]:
        """Those that changed at that time or later, oldest first; those that run change always."""
        return [
            RequestView(
                each.unit,
                each.role,
                each.instance,
                each.queries,
                tuple(each.answered),
                each.outcome,
                1e3 * ((each.ended or now) - each.started),
            )
            for each in self._latest
            if each.changed >= time or each.outcome == "running"
        ]

    def _of_parity(self, query: int) -> Iterator[_Request]:
        for request in reversed(self._latest):
            if request.role not in (COPY, *BACKUPS) and query in request.queries:
                yield request
