"""The books of a chaos run: every query that is sent ends once, by an answer or a clear error.

Pure: it is told what was sent and what came back, and when. Requests are counted by their
queries (rows), except where nothing else is said. Times are in seconds of any one clock.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from parity_models.scheduling import Source
from parity_models_lab.results import Row

MAX_FAILURES = 50
"""Failures that are kept word for word; all are counted."""
MAX_ALIKE = 3
"""Of these, with the same words during the same kind of event."""


class Kind(StrEnum):
    """What a request is."""

    HONEST = "honest"
    ABSURD = "absurd"
    """Numbers of the right shape, but unlike any honest query; perhaps not finite."""
    NONSENSE = "nonsense"
    """No request that could be answered: of a wrong shape, no JSON, no HTTP."""
    POISON = "poison"
    """It kills whoever runs it."""
    IMPATIENT = "impatient"
    """Its client hangs up before the answer."""


class Ending(StrEnum):
    """What became of a request."""

    RIGHT = "right"
    WRONG = "wrong"
    ERROR = "error"
    CUT = "cut"
    """Its client hung up, as it was told to."""
    BROKEN = "broken"
    """The connection ended without an answer."""
    NOTHING = "nothing"
    """Neither an answer nor an error within its deadline and what is allowed beyond."""


REFUSED = frozenset({503, 504})
"""A server that has too much to do, or did not manage in time."""
ALLOWED = {
    Kind.HONEST: REFUSED,
    Kind.ABSURD: REFUSED | {400, 406, 500},
    Kind.NONSENSE: REFUSED | {400, 404, 405, 406, 408, 411, 413, 414, 415, 431, 501},
    Kind.POISON: REFUSED | {429, 500},
    Kind.IMPATIENT: REFUSED,
}
"""The HTTP statuses that are a clear error, by kind of request; gRPC's count as these."""
UNREAD = "unread"
"""The detail of a query without an end that nobody read: the server had no time even to refuse."""
BY_PROXY = "timed out after"
"""With 408, Ray's proxy says so of a query whose frontend did not answer."""
LOST = ("instances failed",)
"""An honest query may fail with 500 where every instance it was tried on was lost."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that is under way. `limit` is when it must have ended."""

    kind: Kind
    phase: str
    queries: int
    at: float
    limit: float
    by: str = "HTTP"


@dataclass(frozen=True, slots=True)
class Failure:
    """What must not happen, and did. `event` is what went on then."""

    at: float
    event: str
    what: str


@dataclass
class Page:
    """The books of one kind of event. `longest_outage` in seconds."""

    endings: Counter[tuple[Kind, Ending, str]] = field(default_factory=Counter)
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    longest_outage: float = 0.0
    full_strength: list[float] = field(default_factory=list)
    """Seconds from an event's end until all instances are up and answer."""

    @property
    def queries(self) -> int:
        return self.endings.total()

    def count(self, *endings: Ending, detail: str | None = None) -> int:
        """Queries that ended so; `detail` None: whatever the detail."""
        return sum(
            count
            for (_, ending, found), count in self.endings.items()
            if ending in endings and detail in (None, found)
        )

    def by_detail(self, ending: Ending) -> dict[str, int]:
        """Return how many queries ended so, by detail."""
        found: Counter[str] = Counter()
        for (_, each, detail), count in sorted(self.endings.items()):
            if each is ending:
                found[detail] += count
        return dict(found)

    def quantile(self, share: float) -> float | None:
        """Of the latencies of right answers to honest queries, in seconds."""
        return float(np.quantile(self.latencies, share)) if self.latencies else None


class Ledger:
    """`pages` by event. `quiet`: whether no honest query is due now, so that there is no outage."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.failures: list[Failure] = []
        self.failed = 0
        self.ended_twice = 0
        self.sent_queries = 0
        self._open: dict[int, Sent] = {}
        self._alike: Counter[tuple[str, str]] = Counter()
        self._last_right: float | None = None
        self._last_number = -1

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    def page(self, event: str) -> Page:
        return self.pages.setdefault(event, Page())

    def sent(self, number: int, sent: Sent) -> None:
        """Request `number`, which counts up, goes out."""
        assert number > self._last_number
        self._last_number = number
        self._open[number] = sent
        self.sent_queries += sent.queries

    def answered(
        self,
        number: int,
        at: float,
        right: list[bool],
        sources: list[Source],
        *,
        lied_to: bool,
        exact: bool = False,
    ) -> None:
        """It was answered, a source for each row; `lied_to` says whether some instance lied."""
        sent = self._close(number, at)
        if sent is None:
            return
        page = self.page(sent.phase)
        for good, source in zip(right, sources, strict=True):
            if sent.kind is Kind.NONSENSE:
                page.endings[sent.kind, Ending.WRONG, source] += 1
                self.fail(at, sent.phase, f"nonsense was answered (source={source})")
            elif good:
                page.endings[sent.kind, Ending.RIGHT, source] += 1
            else:
                because = f"{source}, instance lied" if lied_to else source
                page.endings[sent.kind, Ending.WRONG, because] += 1
                if not lied_to:
                    self.fail(at, sent.phase, f"wrong answer, source={source}")
            if exact and source is not Source.MODEL:
                self.fail(at, sent.phase, f"an exact answer was asked for and {source} came")
        if sent.kind is Kind.HONEST and all(right):
            page.latencies.append(at - sent.at)
            self._answers_go_on(sent.phase, at)

    def refused(self, number: int, at: float, status: int, text: str) -> None:
        """It ended with an error; `text` begins with what kind of error it is."""
        sent = self._close(number, at)
        if sent is None:
            return
        what = error_class(status, text)
        self.page(sent.phase).endings[sent.kind, Ending.ERROR, what] += sent.queries
        lost = status == 500 and text.startswith(LOST)
        late = status == 408 and BY_PROXY in text
        if status not in ALLOWED[sent.kind] and not lost and not late:
            self.fail(at, sent.phase, f"a query that is {sent.kind} got {status}: {text[:200]}")

    def broken(self, number: int, at: float, why: str, *, expected: bool) -> None:
        """Its connection ended; `expected` says whether what went on then explains that."""
        sent = self._close(number, at)
        if sent is None:
            return
        self.page(sent.phase).endings[sent.kind, Ending.BROKEN, why] += sent.queries
        if not expected and sent.kind is not Kind.NONSENSE:
            self.fail(at, sent.phase, f"the connection of a query that is {sent.kind} broke: {why}")

    def cut(self, number: int, at: float) -> None:
        """Its client has hung up."""
        sent = self._close(number, at)
        if sent is not None:
            self.page(sent.phase).endings[sent.kind, Ending.CUT, "by its client"] += sent.queries

    def without_end(self, number: int, at: float, *, unread: bool = False) -> None:
        """Nothing has come of it when it should have ended; `unread`: as the process that listens
        has not even read it."""
        sent = self._close(number, at)
        if sent is not None:
            detail = UNREAD if unread else ""
            self.page(sent.phase).endings[sent.kind, Ending.NOTHING, detail] += sent.queries
            late = at - sent.at
            what = f"a query that is {sent.kind}, over {sent.by}: no end within {late:.1f} s"
            what += ", and it was not even read" if unread else ""
            self.fail(at, sent.phase, what)

    def begin_quiet(self) -> None:
        """No honest queries are due from now on, until one is answered again."""
        self._last_right = None

    def fail(self, at: float, event: str, what: str) -> None:
        """Something else happened that must not happen."""
        self.failed += 1
        self._alike[event, what] += 1
        if len(self.failures) < MAX_FAILURES and self._alike[event, what] <= MAX_ALIKE:
            self.failures.append(Failure(at, event, what))

    def rows(self) -> Iterator[Row]:
        """Yield a row for each kind of event, in the order in which they first happened.

        `outage` is the longest time without a right answer while honest queries were due,
        `recovery` the longest until all instances were up again and answered; both in seconds,
        latencies in ms.
        """
        for event, page in self.pages.items():
            if not page.queries:
                continue
            p50, p999 = page.quantile(0.5), page.quantile(0.999)
            yield {
                "during": event,
                "times": len(page.full_strength),
                "queries": page.queries,
                "right": page.count(Ending.RIGHT),
                "wrong": page.by_detail(Ending.WRONG),
                "errors": page.by_detail(Ending.ERROR),
                "hung up": page.count(Ending.CUT),
                "broken": page.by_detail(Ending.BROKEN),
                "no end": page.count(Ending.NOTHING),
                "outage": round(page.longest_outage, 2),
                "p50": None if p50 is None else p50 * 1e3,
                "p99.9": None if p999 is None else p999 * 1e3,
                "recovery": max(page.full_strength, default=None),
            }

    @property
    def ended(self) -> int:
        """Queries that ended, however."""
        return sum(page.queries for page in self.pages.values())

    def _close(self, number: int, at: float) -> Sent | None:
        sent = self._open.pop(number, None)
        if sent is None:
            self.ended_twice += 1
            self.fail(at, "", f"request {number} ended twice")
        return sent

    def _answers_go_on(self, phase: str, at: float) -> None:
        if self._last_right is not None:
            page = self.page(phase)
            page.longest_outage = max(page.longest_outage, at - self._last_right)
        self._last_right = at


def error_class(status: int, text: str) -> str:
    """The status, and the reason that the text begins with, where it names one."""
    reason, colon, _ = text.partition(": ")
    return f"{status} {reason}" if colon and len(reason) < 30 else f"{status}"
