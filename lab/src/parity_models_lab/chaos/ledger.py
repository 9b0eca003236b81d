"""The ledger of a chaos run: every query that is sent ends once, by an answer or a clear error.

Requests are counted by their queries (rows). Times are in seconds of any one clock.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from parity_models.scheduling import Source
from parity_models_lab.results import Row

MAX_FAILURES, MAX_ALIKE = 50, 3
"""Failures that are kept word for word, and those with the same words during the same kind of
event; all are counted."""
HEALTH_LIMIT = 0.2
"""Seconds in which a server that runs says that it is live, without those for a processor."""


class Kind(StrEnum):
    """Kinds of requests."""

    HONEST = "honest"
    ABSURD = "absurd"
    """Numbers of the right shape, but unlike any honest query; perhaps not finite."""
    NONSENSE = "nonsense"
    """A wrong shape, no JSON, no HTTP: no server could answer it."""
    POISON = "poison"
    """It crashes the instance that runs it."""
    IMPATIENT = "impatient"
    """Its client hangs up before the answer."""


class Ending(StrEnum):
    """Endings of requests."""

    RIGHT = "right"
    WRONG = "wrong"
    ERROR = "errors"
    CUT = "hung up"
    """Its client hung up on purpose."""
    BROKEN = "broken"
    """The connection ended without an answer."""
    NOTHING = "no end"
    """Neither an answer nor an error within its deadline and some slack."""


REFUSED = frozenset({503, 504})
"""The server is overloaded, or missed the deadline."""
ALLOWED = {
    Kind.HONEST: REFUSED,
    Kind.ABSURD: REFUSED | {400, 406, 500},
    Kind.NONSENSE: REFUSED | {400, 404, 405, 406, 408, 411, 413, 414, 415, 431, 501},
    Kind.POISON: REFUSED | {429, 500},
    Kind.IMPATIENT: REFUSED,
}
"""The HTTP statuses that are a clear error, by kind of request; gRPC's count as these."""
BY_PROXY = "timed out after"
"""With 408, Ray's proxy says so of a query whose frontend did not answer."""
LOST = "instances failed"
"""An honest query may fail with 500 where every instance it was tried on was lost."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that is in flight since `at`."""

    kind: Kind
    phase: str
    queries: int
    at: float


@dataclass
class Page:
    """The counts of one kind of event. In seconds: `longest_outage`; the longest that the server
    took to say that it is live, `slowest_health`, and without what it lost for want of a processor,
    `own_health`; `longest_away`, for how long nothing took connections."""

    endings: Counter[tuple[Ending, str]] = field(default_factory=Counter)
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    longest_outage: float = 0.0
    slowest_health: float = 0.0
    own_health: float = 0.0
    longest_away: float = 0.0
    full_strength: list[float] = field(default_factory=list)
    """Seconds from an event's end until all instances are up and answer."""

    def by_detail(self, ending: Ending) -> dict[str, int]:
        """Return the queries that ended so, by detail."""
        return {how: count for (each, how), count in self.endings.items() if each is ending}

    def count(self, ending: Ending) -> int:
        """Return the number of queries that ended so."""
        return sum(self.by_detail(ending).values())

    def quantile(self, share: float) -> float | None:
        """Return a quantile of the latencies of right answers to honest queries, in ms."""
        return float(np.quantile(self.latencies, share)) * 1e3 if self.latencies else None


class Ledger:
    """All requests and their endings, on a page for each kind of event."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.failures: list[tuple[float, str, str]] = []
        """Broken promises: when, during which event, and the text."""
        self.failed = 0
        self.sent_queries = 0
        self._open: dict[int, Sent] = {}
        self._alike: Counter[tuple[str, str]] = Counter()
        self._last_right: float | None = None
        self._away_since: float | None = None

    def page(self, event: str) -> Page:
        return self.pages.setdefault(event, Page())

    def sent(self, number: int, sent: Sent) -> None:
        """Enter request `number`, which goes out now."""
        self._open[number] = sent
        self.sent_queries += sent.queries

    def answered(
        self,
        number: int,
        at: float,
        right: NDArray[np.bool_],
        sources: Sequence[Source],
        *,
        lied_to: bool,
        exact: bool = False,
    ) -> bool:
        """Enter an answer. Return whether all of it is right.

        Args:
            number: The request's.
            at: The time of the answer.
            right: Whether each row is right.
            sources: The source of each row.
            lied_to: Whether an instance may have lied.
            exact: Whether the request wanted the model's own answer.

        """
        sent = self._close(number, at)
        if sent is None:
            return False
        page = self.page(sent.phase)
        for (good, source), count in Counter(zip(right.tolist(), sources, strict=True)).items():
            if good and sent.kind is not Kind.NONSENSE:
                page.endings[Ending.RIGHT, source] += count
            elif lied_to:
                page.endings[Ending.WRONG, f"{source}, instance lied"] += count
            else:
                page.endings[Ending.WRONG, source] += count
                what = "nonsense was answered" if good else "wrong answer"
                self.fail(at, sent.phase, f"{what}, source={source}")
            if exact and source is not Source.MODEL:
                self.fail(at, sent.phase, f"an exact answer was asked for and {source} came")
        is_right = bool(right.all())
        if sent.kind is Kind.HONEST and is_right:
            page.latencies.append(at - sent.at)
            if self._last_right is not None:
                page.longest_outage = max(page.longest_outage, at - self._last_right)
            self._last_right = at
        return is_right

    def refused(self, number: int, at: float, status: int, text: str) -> None:
        """Enter an error; `text` begins with its reason."""
        kind = self._open[number].kind if number in self._open else Kind.HONEST
        lost = status == 500 and text.startswith(LOST)
        late = status == 408 and BY_PROXY in text
        clear = status in ALLOWED[kind] or lost or late
        reason, colon, _ = text.partition(": ")
        detail = f"{status} {reason}" if colon and len(reason) < 30 else f"{status}"
        failure = "" if clear else f"got {status}: {text[:200]}"
        self.ended(number, at, Ending.ERROR, detail, failure)

    def broken(self, number: int, at: float, why: str, *, expected: bool) -> None:
        """Enter a connection that ended; `expected` if the event explains it."""
        nonsense = number in self._open and self._open[number].kind is Kind.NONSENSE
        failure = "" if expected or nonsense else f"lost its connection: {why}"
        self.ended(number, at, Ending.BROKEN, why, failure)

    def ended(
        self, number: int, at: float, ending: Ending, detail: str = "", failure: str = ""
    ) -> None:
        """Enter the end of a request; one with a `failure` must not happen."""
        sent = self._close(number, at)
        if sent is not None:
            self.page(sent.phase).endings[ending, detail] += sent.queries
            if failure:
                self.fail(at, sent.phase, f"a query that is {sent.kind} {failure}")

    def health(self, event: str, at: float, took: float | None, lost: float) -> None:
        """Enter that the server said that it is live, asked at a time, after so many seconds, of
        which it lost some for want of a processor; None: nothing takes connections."""
        page = self.page(event)
        if took is None:
            self._away_since = at if self._away_since is None else self._away_since
            page.longest_away = max(page.longest_away, at - self._away_since)
            return
        self._away_since, own = None, took - lost
        page.slowest_health = max(page.slowest_health, took)
        page.own_health = max(page.own_health, own)
        if own > HEALTH_LIMIT:
            self.fail(at, event, f"health took {took:.2f} s, {lost:.2f} s for want of a processor")

    def begin_quiet(self) -> None:
        """Stop measuring the outage until an honest query is answered again."""
        self._last_right = None

    def fail(self, at: float, event: str, text: str) -> None:
        """Enter a failure."""
        self.failed += 1
        self._alike[event, text] += 1
        if len(self.failures) < MAX_FAILURES and self._alike[event, text] <= MAX_ALIKE:
            self.failures.append((at, event, text))

    def rows(self) -> Iterator[Row]:
        """Yield a row for each kind of event, in the order in which they first happened.

        `outage` is the longest time without a right answer while honest queries were due,
        `recovery` the longest until all instances were up again and answered, `health` the
        longest answer of /v2/health/live, `own health` without what it lost for want of a
        processor, `away` the longest time in which nothing took connections; all in seconds,
        latencies in ms.
        """
        for event, page in self.pages.items():
            if page.endings:
                yield {
                    "during": event,
                    "times": len(page.full_strength),
                    "queries": page.endings.total(),
                    **{
                        each: page.by_detail(each)
                        if each in (Ending.WRONG, Ending.ERROR, Ending.BROKEN)
                        else page.count(each)
                        for each in Ending
                    },
                    "outage": round(page.longest_outage, 2),
                    "p50": page.quantile(0.5),
                    "p99.9": page.quantile(0.999),
                    "health": round(page.slowest_health, 3),
                    "own health": round(page.own_health, 3),
                    "away": round(page.longest_away, 2),
                    "recovery": max(page.full_strength, default=None),
                }

    @property
    def ended_queries(self) -> int:
        return sum(page.endings.total() for page in self.pages.values())

    def _close(self, number: int, at: float) -> Sent | None:
        sent = self._open.pop(number, None)
        if sent is None:
            self.fail(at, "", f"request {number} ended twice")
        return sent
